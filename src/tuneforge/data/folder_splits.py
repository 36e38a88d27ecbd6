"""Train, validation and test files of one folder or glob, told apart by the names that the hub and others give them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneforge.console import say, warn
from tuneforge.data.rows import Row
from tuneforge.errors import Problem, TuneforgeError

TAG = "split"
"""A column that names the split of its row."""
TRAIN, VALIDATION, TEST, NONE = "train", "validation", "test", ""

_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), TRAIN),
    **dict.fromkeys(
        (
            "validation",
            "validate",
            "valid",
            "val",
            "dev",
            "eval",
            "evals",
            "evaluation",
            "holdout",
            "heldout",
            "held_out",
            "held-out",
        ),
        VALIDATION,
    ),
    **dict.fromkeys(("test", "tests", "testing", "tst"), TEST),
}
_WORD = "|".join(_WORDS)
_WHOLE = re.compile(rf"(?:.*[-_. ])?({_WORD})(?:[-_. ]?(?:set|split))?(?:[-_. ]?\d[-_. \w]*)?", re.IGNORECASE)
"""train, train-00000-of-00002, squad_dev, set.test.1, testset"""
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
"""Between the words of `myTrain`."""
_START = re.compile(rf"({_WORD})[-_. ].+", re.IGNORECASE)
"""test_sft, train_data: a split where another file is named as train split, and any name otherwise."""
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_OTHER_DATA = (*PACKED, ".arrow", ".feather", ".orc", ".avro", ".xlsx", ".xls", ".pkl", ".tar")
"""Ends of files that hold data and that no reader is for."""
_SHOWN = 4


@dataclass(frozen=True)
class Splits:
    """Files by what they are for."""

    train: list[Path]
    validation: list[Path]
    test: list[Path]
    """Left out: neither trained on nor evaluated."""

    def describe(self, base: Path) -> str:
        """The files of each split in one line."""
        parts = {"train": self.train, "eval": self.validation, "left out (test)": self.test}
        return "; ".join(f"{what}: {_few(files, base)}" for what, files in parts.items() if files)


def splits_of(files: Sequence[Path], base: Path) -> Splits | None:
    """The splits that names of files and of folders below `base` say; None where they are all of one kind.

    Raises:
        TuneforgeError: files that no name assigns stand beside a train split, or there is nothing to train on.
    """
    kinds = {file: _kind(file.relative_to(base), weak=True) for file in files}
    if TRAIN not in kinds.values():
        kinds = {file: _kind(file.relative_to(base), weak=False) for file in files}
    if len(set(kinds.values())) < 2:
        return None
    parts = {kind: [file for file in files if kinds[file] == kind] for kind in (TRAIN, VALIDATION, TEST, NONE)}
    if parts[TRAIN] and parts[NONE]:
        raise _unassigned(parts, base)
    train = parts[TRAIN] or parts[NONE]
    if not train:
        message = f"{base} has validation and test files and none to train on: {_few(files, base)}"
        fix = f"name what to train on: data.path={parts[VALIDATION][0]}"
        raise TuneforgeError("no-train-files", message, path="data.path", fix=fix)
    return Splits(train, parts[VALIDATION], parts[TEST])


def by_column(rows: Sequence[Row], origin: str) -> list[Row]:
    """The rows with the side that a column `split` names; all of them as they are where it is not that in each row.

    Raises:
        TuneforgeError: it leaves nothing to train on.
    """
    named = [_WORDS.get(str(row.fields.get(TAG)).strip().lower()) for row in rows]
    if None in named or len(set(named)) < 2 or any(row.held_out is not None for row in rows):
        return [*rows]
    counts = Counter(named)
    if not counts[TRAIN]:
        fix = f"name it train where it is, or leave the column unread: data.columns.{TAG}=null"
        message = f"column {TAG!r} of {origin} names no row as of the train split"
        raise TuneforgeError("no-train-files", message, path="data.path", fix=fix)
    held = bool(counts[VALIDATION])
    found = f"{counts[TRAIN]} train, {counts[VALIDATION]} eval, {counts[TEST]} left out (test)"
    say(f"splits by the column {TAG!r}: {found}")
    kept = [(row, kind) for row, kind in zip(rows, named, strict=True) if kind != TEST]
    return [replace(row, held_out=kind == VALIDATION if held else None) for row, kind in kept]


def is_split(folder: Path) -> bool:
    """Whether a folder is named as a split."""
    return _WHOLE.fullmatch(_HUMP.sub("_", folder.name)) is not None


def warn_unread(folder: Path, visible: Sequence[Path], found: Sequence[Path], readers: Sequence[str]) -> None:
    """Name the files of a folder that look like data and are not read; its other files, such as a README, are not.

    Args:
        folder: `data.path`.
        visible: what it holds.
        found: the files that are read.
        readers: their suffixes.
    """
    packed = [one for one in visible if one.suffix.lower() in _OTHER_DATA and one.is_file()]
    packed = [one for one in packed if one.suffix.lower() not in PACKED or Path(one.stem).suffix.lower() in readers]
    parts = [one for one in visible if one.is_dir() and not is_split(one)]
    deeper = [one for part in parts for one in part.glob("*") if one.suffix.lower() in readers and one.is_file()]
    unread = sorted(one for one in (*packed, *deeper) if one not in found)
    if unread:
        fix = (
            f"for files further down: data.path='{folder}/**/*{deeper[0].suffix}'"
            if deeper
            else "unpack or convert them"
        )
        message = f"files of the folder {folder} that are not read: {_few(unread, folder)}"
        warn(Problem("unread-files", message, "data.path", fix=f"{fix}; or name the files to use"))


def _kind(path: Path, weak: bool) -> str:
    for name in (*path.parts[:-1], path.name.partition(".")[0], path.stem):
        words = _HUMP.sub("_", name)
        found = _WHOLE.fullmatch(words) or (_START.fullmatch(words) if weak else None)
        if found:
            return _WORDS[found[1].lower()]
    return NONE


def _unassigned(parts: dict[str, list[Path]], base: Path) -> TuneforgeError:
    message = (
        f"{base} has train files ({_few(parts[TRAIN], base)}) and others whose split is not clear "
        f"({_few(parts[NONE], base)})"
    )
    fix = "move the others elsewhere"
    if len(parts[TRAIN]) == 1:
        held = f" data.split.eval_path={parts[VALIDATION][0]}" if len(parts[VALIDATION]) == 1 else ""
        fix = f"name the files to use: data.path={parts[TRAIN][0]}{held}; or {fix}"
    return TuneforgeError("mixed-splits", message, path="data.path", fix=fix)


def _few(files: Sequence[Path], base: Path) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return ", ".join(file.relative_to(base).as_posix() for file in files[:_SHOWN]) + more
