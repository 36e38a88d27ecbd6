"""What every dialect shares: how a foreign file is read, told apart, translated and written out as ours.

A key of the foreign file ends in one of four ways, and never in silence: carried, without meaning here, not supported,
or unknown to its own tool too. What is carried is judged by composing it: no claim outlives the option it names.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneforge.compose import compose
from tuneforge.errors import Problem, TuneforgeError, near
from tuneforge.front import front, groups
from tuneforge.importers.translation import Left, Translation, overrides
from tuneforge.masking import masked
from tuneforge.shell import hydra
from tuneforge.yaml_files import read_yaml_file

OFF: tuple[Any, ...] = (None, False, 0, "", "no", "none", "null", [], {})
"""Values that switch a feature off: a feature that is off there and absent here is the same."""


@dataclass(frozen=True)
class To:
    """A key that is ours under another name."""

    path: str
    convert: Callable[[Any], Any] = lambda value: value
    """Raises ValueError, with the reason, for a value that cannot be carried."""


@dataclass(frozen=True)
class Not:
    """A key that is not carried, unless its value is what happens here anyway."""

    why: str
    same: tuple[Any, ...] = OFF


@dataclass(frozen=True)
class Handled:
    """A key that one of the dialect's functions deals with."""


Rule = To | Not | Handled


def every(names: str, rule: Rule) -> dict[str, Rule]:
    """The same rule for each of the names, which are separated by white space."""
    return dict.fromkeys(names.split(), rule)


@dataclass(frozen=True)
class Dialect:
    """A tool whose configs can be read."""

    name: str
    title: str
    rules: Mapping[str, Rule]
    defaults: Mapping[str, Any]
    """The tool's own defaults of what changes a training and is otherwise here: carried as if written."""
    steps: tuple[Callable[["Draft"], None], ...]
    unknown: str
    """What the tool does with a key that it does not know."""


@dataclass
class Draft:
    """A translation while it is made."""

    dialect: Dialect
    file: Path
    given: Mapping[str, Any]
    options: Mapping[str, Sequence[str]]
    """Group -> the options there are."""
    result: Translation
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Group or dotted key of ours -> the foreign keys it came from."""
    assumed: list[str] = field(default_factory=list)
    """Dotted keys of ours that came from the tool's defaults."""
    done: set[str] = field(default_factory=set)
    """Foreign keys that are accounted for."""

    def has(self, key: str) -> bool:
        """Whether the file sets the key; null is not set, in all three tools."""
        return self.given.get(key) is not None

    def get(self, key: str) -> Any:
        """The file's value, or the tool's default."""
        return self.given[key] if self.has(key) else self.dialect.defaults.get(key)

    def on(self, key: str) -> bool:
        """Whether a switch is on."""
        return self.get(key) is True

    def number(self, key: str) -> float | int | None:
        """The value as a number; a text that is none is left, and the default stands."""
        try:
            return None if self.get(key) is None else number(self.get(key))
        except ValueError as error:
            self.leave(key, str(error))
            default = self.dialect.defaults.get(key)
            return default if isinstance(default, int | float) else None

    def same(self, *keys: str) -> None:
        """These keys need nothing here."""
        self.done.update(keys)

    def set(self, path: str, value: Any, *keys: str) -> None:
        """Carry a value that came from these foreign keys."""
        self.same(*keys)
        if "${" in str(value):  # also inside of a list or a mapping
            for key in keys:
                self.leave(key, "holds an interpolation, which only its own tool resolves")
            return
        self.result.values[path] = value
        self.sources[path] = keys
        if keys and not any(self.has(key) for key in keys):
            self.assumed.append(path)

    def choose(self, group: str, option: str, *keys: str, why: str = "") -> bool:
        """Pick an option if there is one of this name; otherwise the keys are left."""
        if option in self.options.get(group, ()):
            self.same(*keys)
            self.result.choices[group] = option
            self.sources[group] = keys
            return True
        for key in keys:
            self.leave(key, why or f"there is no {group}={option} here")
        return False

    def leave(self, key: str, why: str, value: Any = ...) -> None:
        """List a key as not carried, or not wholly; a dotted key is a part of a top-level one."""
        root = _root(key, self.given)
        self.same(root)
        shown = self.given.get(key) if value is ... else value
        if key == "env" and isinstance(shown, Mapping):
            shown = dict.fromkeys(map(str, shown), "***")
        shown = masked(shown, key)
        entry = Left(key, shown, why)
        if entry not in self.result.left and (key in self.given or root in self.given):
            self.result.left.append(entry)

    def replace(self, text: str) -> None:
        """Note that the result trains something else than the file does, and why."""
        self.result.replaced.append(text)
        self.note(f"NOT the same training: {text}")

    def note(self, text: str) -> None:
        """Say something that is of no single key."""
        if text not in self.result.notes:
            self.result.notes.append(text)


def number(value: Any) -> float | int:
    """A number; also one written as text, as YAML reads `2e-5`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("is not a number")
    try:
        found = float(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("is not a number") from None
    if not math.isfinite(found):
        raise ValueError("is not a finite number")
    return found


def whole(value: Any) -> int:
    """A whole number."""
    found = number(value)
    if found != int(found):
        raise ValueError("must be a whole number here")
    return int(found)


def switch(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false here")
    return value


# From a file to a translation


def translate(path: Path, dialect: str | None = None) -> Translation:
    """Read a config of another tool as ours; which tool's is told by its keys.

    Raises:
        TuneforgeError: no such file, no config, or a config of none of the tools.
    """
    given = _read(path)
    known = dialects()
    chosen = known[dialect] if dialect else _recognise(path, given, known)
    with front() as loader:
        options = groups(loader)
    result = Translation(chosen.name, name=re.sub(r"\W+", "_", path.stem) or "imported")
    draft = Draft(chosen, path, given, options, result)
    for step in chosen.steps:
        step(draft)
    _apply_rules(draft)
    _judge(draft)
    if draft.assumed:
        written = ", ".join(f"{p}={hydra(result.values[p])}" for p in draft.assumed if p in result.values)
        draft.note(
            f"the file leaves these to {chosen.title}'s defaults, written out because ours may differ: {written}"
        )
    draft.note(
        f"what a run here saves is the checkpoint with the lowest eval loss; {chosen.title} saves the last, unless told"
    )
    if "output_root" in result.values:
        draft.note("output_root is a parent here: each run makes a dated folder in it")
    result.carried = [key for key in given if key in draft.done and key not in {entry.key for entry in result.left}]
    result.left.sort(key=lambda entry: list(given).index(_root(entry.key, given)))
    return result


def dialects() -> dict[str, Dialect]:
    """Name -> dialect."""
    from tuneforge.importers import axolotl, llama_factory, trl

    return {d.name: d for d in (axolotl.DIALECT, llama_factory.DIALECT, trl.DIALECT)}


def _root(key: str, given: Mapping[str, Any]) -> str:
    """The top-level key that `datasets[0].path` is a part of."""
    return key if key in given else re.split(r"[\[.]", key, maxsplit=1)[0]


def _read(path: Path) -> dict[str, Any]:
    fix = "give the YAML or JSON config of Axolotl, LLaMA-Factory or TRL"
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise TuneforgeError("no-import-file", f"{path}: {what}", fix=f"{fix}; looked at {path.resolve()}")
    try:
        read = read_yaml_file(path)
    except TuneforgeError as error:
        message = f"{path} is neither YAML nor JSON: {error.problems[0].message}"
        raise TuneforgeError("not-a-config", message, fix=fix) from error
    except OSError as error:
        raise TuneforgeError("not-a-config", f"{path} cannot be read: {error.strerror}", fix=fix) from error
    if not isinstance(read, dict) or not read:
        kind = "empty" if not read else f"a {type(read).__name__}"
        raise TuneforgeError("not-a-config", f"{path} holds no mapping of keys to values: it is {kind}", fix=fix)
    return {str(key): value for key, value in read.items()}


def read_json_beside(path: Path) -> Any:
    """The JSON of a file that a config names; None where it is none, as where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _recognise(path: Path, given: Mapping[str, Any], known: Mapping[str, Dialect]) -> Dialect:
    score = {name: sum(key in d.rules for key in given) for name, d in known.items()}
    best = max(score.values())
    winners = [known[name] for name, count in score.items() if count == best]
    if len(winners) == 1 and best * 3 >= len(given):
        return winners[0]
    counted = ", ".join(f"{known[name].title} {count}" for name, count in score.items())
    raise TuneforgeError(
        "unknown-dialect",
        f"{path} cannot be told to be of one tool: of its {len(given)} keys these know {counted}",
        fix="import reads training configs of these three; give the whole file, with its model and data keys",
    )


def _apply_rules(draft: Draft) -> None:
    """The table: for the keys that no step has dealt with, and for the defaults of plainly renamed ones."""
    for key, rule in draft.dialect.rules.items():
        if isinstance(rule, To) and key not in draft.done and draft.get(key) is not None:
            try:
                draft.set(rule.path, rule.convert(draft.get(key)), key)
            except ValueError as error:
                draft.leave(key, str(error))
    for key, value in draft.given.items():
        if key in draft.done:
            continue
        found = draft.dialect.rules.get(key)
        if found is None:
            close = near(key, draft.dialect.rules, limit=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            draft.leave(key, f"{draft.dialect.title} has no such key: {draft.dialect.unknown}.{hint}")
        elif value is None or (isinstance(found, Not) and _is_one_of(value, found.same)):
            draft.same(key)
        elif isinstance(found, Not):
            draft.leave(key, found.why)
        else:
            draft.leave(key, "has no effect with the other settings of this file")


def _is_one_of(value: Any, same: tuple[Any, ...]) -> bool:
    return any(type(value) is type(one) and value == one for one in same)


def _judge(draft: Draft) -> None:
    """Compose what was carried, as a run would; what is refused is left with the refusal as its reason."""
    result = draft.result
    for _ in range(len(result.values) + len(result.choices) + 1):
        try:
            compose(overrides(result))
        except TuneforgeError as error:
            # Several rules may refuse one key: the first says why it is left.
            refused = {
                p.path: p for p in reversed(error.problems) if p.path in result.values or p.path in result.choices
            }
            if not refused:
                for problem in error.problems:
                    draft.note(f"before it runs, mend {' '.join(str(problem).split())}")
                return
            for problem in refused.values():
                _refuse(draft, problem)
        else:
            return


def _refuse(draft: Draft, problem: Problem) -> None:
    result, path = draft.result, problem.path
    value = result.values.pop(path) if path in result.values else result.choices.pop(path)
    why = f"{path}={hydra(value)} is refused here: {problem.message}"
    given = [key for key in draft.sources[path] if draft.has(key)]
    for key in given:
        draft.leave(key, why)
    if not given:
        draft.note(f"{draft.dialect.title}'s default could not be carried: {why}")
