"""No option is checked, documented and then read by nothing: a run is watched, and each key of the schema must be read.

Reading a key in order to judge it (rules, warnings) or to write it down (records) does not count.
"""

import ast
import dataclasses
import importlib
import inspect
import sys
import textwrap

import pytest

from helpers import SHORT
from tuneforge import compose as composing
from tuneforge import targets
from tuneforge.compose import compose
from tuneforge.front import front, groups
from tuneforge.inert import FOR_TARGETS, HINTS
from tuneforge.interpolation import references
from tuneforge.schema.check import leaf_paths
from tuneforge.schema.signature import read_signature

# Names of options are for the record; a person reads them.
NAMES = {"model.name", "method.name", "task_recipe.name", "strategy.name", "hardware.name"}
JUDGES = ("dataclasses", "tuneforge.inert", "tuneforge.compose", "copy")
NEEDS = {"file": ["data.path=rows.jsonl"], "hf": ["model.path=somewhere"]}


class Watch:
    """Records which keys of the typed config are read, by whom it matters."""

    def __init__(self) -> None:
        self.read: set[str] = set()

    def over(self, value, prefix=""):
        """The dataclass, and those inside it, turned into ones that record their reads."""
        names = [f.name for f in dataclasses.fields(value)]
        for name in names:
            inner = object.__getattribute__(value, name)
            path = f"{prefix}.{name}" if prefix else name
            if dataclasses.is_dataclass(inner):
                self.over(inner, path)
            elif isinstance(inner, dict):
                for node in filter(dataclasses.is_dataclass, inner.values()):
                    self.over(node, f"{path}.*")

        def recording(this, name):
            reader = sys._getframe(1).f_globals.get("__name__", "")
            # A fact about the machine is there to judge by.
            rule = reader.startswith("tuneforge.rules.")
            judged = reader in JUDGES or (rule and prefix != "hardware")
            if name in names and not judged:
                self.read.add(f"{prefix}.{name}" if prefix else name)
            return object.__getattribute__(this, name)

        kind = type(value.__class__.__name__, (value.__class__,), {"__getattribute__": recording})
        object.__setattr__(value, "__class__", kind)
        return value


@pytest.fixture(scope="module")
def compositions():
    """Every option, composed with the defaults."""
    with front() as loader:
        found = groups(loader)
    return {f"{g}={o}": compose([f"{g}={o}", *NEEDS.get(o, [])]) for g, options in found.items() for o in options}


def test_every_key_of_the_schema_is_read_by_a_run(command, compositions, monkeypatch):
    watch, passed = Watch(), set()
    structure = composing.structure
    monkeypatch.setattr(
        composing,
        "structure",
        lambda cls, tree: watch.over(structure(cls, tree)) if cls.__name__ == "Config" else structure(cls, tree),
    )
    original = targets.make

    def make(group, node, kind, *objects):
        signature = read_signature(node["_target_"])
        passed.update(f"{node['_target_']}.{k}" for k in [*node, ""] if not k or k in signature.fields)
        return original(group, node, kind, *objects)

    for module in [
        m for n, m in sys.modules.items() if n.startswith("tuneforge") and getattr(m, "make", None) is original
    ]:
        monkeypatch.setattr(module, "make", make)
    monkeypatch.setattr(targets, "make", make)

    epochs = [o for o in SHORT if not o.startswith(("trainer.max_steps", "data.max_rows"))]
    options = [
        *epochs,
        "trainer.max_epochs=1",
        "data.max_rows=16",
        "trainer.log_every_n_steps=1",
        "data.replay.fraction=0.1",
    ]
    once = ("sanity.overfit_one_batch=true", "sanity.below=0.9", "regularise.ewc=1", "regularise.rows=2")
    first = command(*options, "hardware=cpu", "resume=auto", *once)
    assert first.code == 0
    adapter = first.folder / "adapter"
    several = (f"model.adapter=[{adapter},{adapter}]", "model.combination.type=ties")
    assert command("lr_find", *options, "lr_find.steps=40", "lr_find.lowest=1e-5", *several).code == 0
    assert command(*options, "data.replay.fraction=0", "task_recipe=classification").code == 0
    assert command(*options, "hardware=h100", "hardware.require=true").code == 2
    assert command("plan", "hardware=rtx4090", "method=qlora").code == 0

    interpolated = {
        reference
        for composed in compositions.values()
        for path, origin in composed.origins.items()
        if origin.expression
        for reference in references(origin.expression, composed.tree, path)
    }
    leaves = leaf_paths()
    handed = {p for p in FOR_TARGETS if any(q.endswith("." + p.partition(".")[2]) for q in passed)} | {
        "data.path",
        "data.encoding",
    }  # of data=file
    hints = {h for h in HINTS if any(i == h or i.startswith(f"{h}.") for i in interpolated)}
    made = {p.rpartition(".")[0] for p in passed}
    mappings = {g for g in ("callbacks", "logger") for n in compose().tree[g].values() if n["_target_"] in made}
    read = watch.read | handed | mappings | hints | interpolated | NAMES
    assert len(leaves) >= 70
    unread = sorted(set(leaves) - read)
    assert not unread, ", ".join(unread)


def option_targets(compositions):
    found = {
        node["_target_"]
        for composed in compositions.values()
        for group in composed.tree.values()
        if isinstance(group, dict)
        for node in (group, *group.values())
        if isinstance(node, dict) and "_target_" in node
    }
    return sorted(found)


def test_every_option_of_every_target_is_used_in_its_code(compositions):
    """An option that a function takes and never looks at would pass every other check."""
    counted, unused = 0, []
    for target in option_targets(compositions):
        module, _, name = target.rpartition(".")
        code = getattr(importlib.import_module(module), name)
        kinds = [k for k in code.__mro__ if k is not object] if inspect.isclass(code) else [code]
        sources = [textwrap.dedent(inspect.getsource(k)) for k in kinds if k.__module__.startswith("tuneforge")]
        used = {
            n.attr if isinstance(n, ast.Attribute) else n.id
            for source in sources
            for n in ast.walk(ast.parse(source))
            if isinstance(n, ast.Attribute | ast.Name) and isinstance(n.ctx, ast.Load)
        }
        for option in read_signature(target).fields:
            counted += 1
            if option not in used:
                unused.append(f"{target}.{option}")
    assert counted > 20
    assert unused == []
