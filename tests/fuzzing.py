"""Random input that is made from a seed: values, and damage to texts and trees."""

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

SECONDS = 5.0
"""Processor time that one command may take."""
SOAK = 3
"""Cases in the soak for each of the suite."""
FULL = 40
"""Cases in the whole soak for each of the suite."""

HERE = Path(__file__).parent


def lines_of(name: str) -> list[str]:
    """The lines of a file of tests/security, with their escapes replaced."""
    text = (HERE / "security" / name).read_text()
    return [line.encode("latin-1").decode("unicode_escape") for line in text.splitlines()]


# Values that a parser, a resolver, a number or a path may fail on.
NASTY = [
    *lines_of("nasty_values.txt"),
    *("", "9" * 400, "[" * 300, "{a:" * 100, "x" * 5000, "hf_" + "x" * 34, "\u202e", "\ud7ff", "\udcff", "\u2028"),
]
# Values of another type, for a tree that is read from JSON or YAML.
TYPES: list[Any] = [
    *(None, True, 3, -1.5, 0, 10**30, float("inf"), float("nan"), "", " ", "x", "\x00", "\ud800", "1e3", "9" * 300),
    *([], {}, [None], [[]], {"a": 1}, [{}], ["x", 3], {"": None}, "../../etc", "${oc.env:HOME}", "${nothing}"),
]

# Entries of a defaults list.
DEFAULTS = [
    *(
        "{override /method: nothing}",
        "{override /method: lora}",
        "{/method: [lora, dora]}",
        "{/method: lora}",
        "_self_",
    ),
    *(
        "{a: {b: c}}",
        "{a: [{}]}",
        "{a: [3]}",
        "{a: 3}",
        "{a: null}",
        "{a: ''}",
        "{'': b}",
        "{3: b}",
        "{a: b, c: d}",
        "{}",
    ),
    *("3", "null", "''", "' '", "[]", "fuzz", "/method/fuzz", "{/method: fuzz}", "{/optim: fuzz}", "???", "{a: '???'}"),
    *(
        "{override: b}",
        "{optional a: b}",
        "{optional override a: b}",
        "{x a: b}",
        "{a b c: d}",
        "{a@b: c}",
        "{a@b:c: d}",
    ),
    *("{/method@optim: lora}", "/method/lora@optim", "a@", "@", "{@: b}", "'${nothing}'", "{/method: '${nothing}'}"),
    *("{'/method${x}': lora}", "{/method: ../optim/adamw}", "../x", "/", "{/: x}", "{a: '~'}", "{override a: null}"),
    *("{override /method@x: lora}", "{override /hydra/sweeper: basic}", "{/hydra/job_logging: none}", "{a: b/c}"),
]


class SlowError(BaseException):
    """A command took too long. No `except Exception` of the product may catch it."""


def rng_of(seed: int) -> random.Random:
    """The random numbers of one case."""
    return random.Random(f"fuzz {seed}")


@contextmanager
def limited() -> Iterator[None]:
    """More than `SECONDS` of processor time inside is an error; a busy machine costs none."""

    def late(number: int, frame: Any) -> None:
        raise SlowError(f"more than {SECONDS} s of processor time")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def seeds(count: int, first: int) -> pytest.MarkDecorator:
    """Parametrise a test by ranges of seeds: one for the suite, others for the soak and the whole soak.

    FUZZ_SEED=N or FUZZ_SEED=N-M in the environment runs those cases alone, each as a test.
    """
    chosen = os.environ.get("FUZZ_SEED")
    if chosen:
        low, _, high = chosen.partition("-")
        single = [range(n, n + 1) for n in range(int(low), int(high or low) + 1)]
        return pytest.mark.parametrize("cases", single, ids=lambda cases: str(cases.start))
    soak, full = count * SOAK, count * FULL
    parts = [
        pytest.param(range(first, first + count), id="suite"),
        pytest.param(range(first + count, first + count + soak), id="soak", marks=pytest.mark.soak),
        pytest.param(
            range(first + count + soak, first + full),
            id="soak_full",
            marks=[pytest.mark.soak_full, pytest.mark.timeout(7200)],
        ),
    ]
    return pytest.mark.parametrize("cases", parts)


def run_all(cases: range, case: Callable[[int, random.Random], None]) -> None:
    """Run each case, and fail with the seeds of all that failed."""
    failed = {}
    for seed in cases:
        try:
            case(seed, rng_of(seed))
        except (AssertionError, SlowError) as error:
            failed[seed] = str(error)[-1500:]
    told = "\n\n".join(f"FUZZ_SEED={seed}\n{error}" for seed, error in failed.items())
    assert not failed, f"{len(failed)} of {len(cases)} cases failed\n\n{told}"


# ---- damage


def misspelt(text: str, rng: random.Random) -> str:
    """The text with a character less or more."""
    place = rng.randrange(len(text) + 1)
    return rng.choice([text[:place] + text[place + 1 :], text[:place] + rng.choice("abz._-@/ ") + text[place:]])


def mangled(text: str, rng: random.Random) -> bytes:
    """A YAML or JSON file with a few of its lines changed."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        lines = text.splitlines() or [""]
        at = rng.randrange(len(lines))
        lines[at] = _line(lines[at], rng)
        text = "\n".join(lines)
    return torn(text.encode("utf-8", "surrogatepass"), rng)


def _line(line: str, rng: random.Random) -> str:
    key = line.partition(":")[0]
    return rng.choice(
        [
            *("", line + line, "  " + line, line.lstrip(), "\t" + line, f"- {line}", f"{line}\n{line}"),
            *(f"{key}: {rng.choice(NASTY)}", f"{key}: {rng.choice(NASTY)}", f"{key}: !!python/name:os.system ''"),
            *(f"{key}: !!{rng.choice(['int', 'bool', 'set', 'binary', 'timestamp', 'map'])} x", f"{key}:", f"{key}: |"),
            *("%YAML 9.9", "---", "...", "? [a, b]\n: c", "<<: *nothing", "<<: 3", "? {a: 1}\n: 2"),
            f"defaults: [{rng.choice(DEFAULTS)}, _self_]",
            f"defaults: [{rng.choice(DEFAULTS)}, {rng.choice(DEFAULTS)}]",
            "# @package " + rng.choice(["_global_", "..", "a b", "_group_._name_", ""]),
        ]
    )


def torn(raw: bytes, rng: random.Random) -> bytes:
    """Now and then with bytes put in, changed or cut off."""
    kind = rng.random()
    at = rng.randrange(len(raw) + 1)
    if kind < 0.1:
        return raw[:at] + rng.randbytes(rng.choice([1, 3])) + raw[at:]
    if kind < 0.2:
        return raw[:at]
    if kind < 0.25:
        return raw[:at] + rng.randbytes(1) + raw[at + 1 :]
    return raw


def retyped(tree: Any, rng: random.Random) -> None:
    """Give one value in a tree another type, or take it away."""
    node = tree
    while True:
        key = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.25:
            break
        node = inner
    if rng.random() < 0.1:
        del node[key]
    else:
        node[key] = rng.choice(TYPES)


def retype(file: Path, rng: random.Random) -> None:
    """Rewrite a JSON, JSONL or YAML file with values of another type."""
    lines = file.suffix == ".jsonl"
    tree = json.loads(file.read_text().splitlines()[0]) if lines else yaml.safe_load(file.read_text())
    for _ in range(rng.choice([1, 1, 2])):
        if tree:
            retyped(tree, rng)
    text = json.dumps(tree) + "\n" if lines or file.suffix == ".json" else yaml.safe_dump(tree)
    file.write_bytes(text.encode("utf-8", "surrogatepass"))


def damage(file: Path, rng: random.Random) -> None:
    """Damage a text file as a crash, an editor or an attacker would."""
    text = file.read_text()
    kind = rng.randrange(9)
    if kind == 0:
        file.write_text("")
    elif kind == 1:
        file.write_text(text[: rng.randrange(len(text))])
    elif kind == 2:
        file.unlink()
        if rng.random() < 0.5:
            file.mkdir()
    elif kind == 3:
        file.write_bytes(rng.randbytes(64))
    elif kind == 4:
        file.write_text(rng.choice(["[]", "null", "3", '"x"', "{}", "[" * 2000, '{"a": ' * 500, "NaN", "9" * 5000]))
    elif kind == 5:
        file.write_bytes(mangled(text, rng))
    else:
        retype(file, rng)
