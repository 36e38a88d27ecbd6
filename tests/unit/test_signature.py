"""Options are read from source, without importing what they belong to."""

import importlib
import subprocess
import sys
from typing import Any, get_args

import pytest

from tuneforge.compose import compose
from tuneforge.plugins.discovery import core_options
from tuneforge.schema.check import check, leaf_paths
from tuneforge.schema.facts import method_facts
from tuneforge.schema.signature import MISSING, NodeType, read_signature
from tuneforge.schema.source import UnreadableTargetError


def test_a_dataclass_gives_its_fields_with_bases_types_defaults_and_docs():
    signature = read_signature("tuneforge.methods.qlora.QLora")
    # Its own, those of Lora, and those of the base of all methods with targets; no ClassVar and no property.
    assert {"double_quant", "r", "lora_alpha", "target_modules", "layers_to_transform"} <= set(signature.fields)
    assert list(signature.fields)[-1] == "double_quant"
    assert not {"trains_base", "exact", "rewrites_base"} & set(signature.fields)
    assert signature.fields["r"].default == 16
    assert signature.fields["r"].doc.startswith("Rank")
    inner, constraint = get_args(signature.fields["r"].type)
    assert inner is int
    assert constraint.ge == 1


def test_a_function_gives_its_options_and_counts_the_objects_it_is_handed():
    signature = read_signature("tuneforge.schedulers.cosine")
    assert list(signature.fields) == ["warmup_ratio", "min_lr_ratio"]
    assert signature.num_objects == 2


def test_a_library_class_is_read_through_its_reexports():
    fields = read_signature("lightning.pytorch.callbacks.EarlyStopping").fields
    assert fields["monitor"].default is MISSING
    assert fields["patience"].type is int


def test_nested_dataclasses_are_node_types():
    assert read_signature("tuneforge.schema.Config").fields["model"].type == NodeType("tuneforge.schema.model.Model")


@pytest.mark.parametrize("target", ["tuneforge.nothing.X", "tuneforge.optim.nothing", "no_such_package.x", "plain"])
def test_a_target_that_is_not_there_is_an_error(target):
    with pytest.raises(UnreadableTargetError):
        read_signature(target)


def test_reading_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from tuneforge.schema.signature import read_signature\n"
        "read_signature('tuneforge.methods.lora.Lora'); read_signature('lightning.pytorch.callbacks.EarlyStopping')\n"
        "read_signature('torch.optim.AdamW')\n"
        "sys.exit(int(any(m in sys.modules for m in ('torch', 'lightning', 'peft', 'tuneforge.methods.lora'))))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_leaf_of_the_schema_has_documentation():
    undocumented = []

    def walk(target: str, path: str) -> None:
        for field in read_signature(target).fields.values():
            if not field.doc:
                undocumented.append(f"{path}{field.name}")
            nested: Any = field.type
            if isinstance(nested, NodeType):
                walk(nested.target, f"{path}{field.name}.")

    walk("tuneforge.schema.Config", "")
    assert undocumented == []
    assert len(leaf_paths()) > 60


def test_a_file_written_for_the_test_is_read_with_its_constraints(tmp_path, monkeypatch):
    (tmp_path / "someplugin.py").write_text(
        "import torch_that_is_not_there\n"
        "from dataclasses import dataclass, field\n"
        "from typing import Annotated, Literal\n"
        "from tuneforge.schema.types import Range\n"
        "Share = Annotated[float, Range(ge=0, le=1)]\n"
        "@dataclass\n"
        "class Knobs:\n"
        "    share: Share\n"
        "    kind: Literal['a', 'b'] = 'a'\n"
        "    names: list[str] = field(default_factory=list)\n"
        "    model: torch_that_is_not_there.Model = None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    fields = read_signature("someplugin.Knobs").fields
    assert fields["share"].required
    assert fields["kind"].default == "a"
    assert fields["names"].default == []
    assert fields["model"].type is Any


KEYWORD_ONLY = {
    "from dataclasses import KW_ONLY, dataclass, field": ("dataclass", "KW_ONLY", "field"),
    "import dataclasses": ("dataclasses.dataclass", "dataclasses.KW_ONLY", "dataclasses.field"),
    "import dataclasses as dc": ("dc.dataclass", "dc.KW_ONLY", "dc.field"),
    "from dataclasses import KW_ONLY as K, dataclass as d, field as f": ("d", "K", "f"),
    "from dataclasses import *; from dataclasses import KW_ONLY, dataclass, field": ("dataclass", '"KW_ONLY"', "field"),
}


@pytest.mark.parametrize("imports", KEYWORD_ONLY)
def test_keyword_only_fields_are_read_however_their_words_were_imported(tmp_path, monkeypatch, imports):
    decorator, marker, field = KEYWORD_ONLY[imports]
    name = f"keyword_only_{list(KEYWORD_ONLY).index(imports)}"
    (tmp_path / f"{name}.py").write_text(
        f"{imports}\n@{decorator}\nclass Knobs:\n"
        f"    first: int\n    _: {marker}\n    needed: int = {field}(kw_only=True)\n"
        f"    given: int = {field}(default=4, kw_only=True)\n    names: list = {field}(default_factory=list)\n"
        f"    hidden: int = {field}(init=False)\n    any: int = {field}(**{{}})\n"
        f"@{decorator}(kw_only=True)\nclass More(Knobs):\n    last: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    fields = read_signature(f"{name}.More").fields
    wanted = {"first": MISSING, "needed": MISSING, "given": 4, "names": [], "any": ..., "last": 1}
    assert {n: f.default for n, f in fields.items()} == wanted


def test_check_reports_every_problem_of_a_tree_at_once():
    problems = check({"seed": "x", "trainr": {}, "batch": {"effective": 0, "per_devise": 1}}).problems
    paths = {p.path for p in problems}
    assert {"seed", "trainr", "batch.effective", "batch.per_devise", "model", "optim"} <= paths


def test_a_subclass_takes_the_objects_of_the_constructor_it_inherits(tmp_path, monkeypatch):
    (tmp_path / "inheriting.py").write_text(
        "from dataclasses import dataclass\n"
        "class Base:\n"
        "    def __init__(self, context, /, *, knob: int = 1): ...\n"
        "class Derived(Base): ...\n"
        "@dataclass(kw_only=True)\n"
        "class Plain(Base):\n"
        "    other: int = 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    derived, plain = read_signature("inheriting.Derived"), read_signature("inheriting.Plain")
    assert (derived.num_objects, set(derived.fields)) == (1, {"knob"})
    assert plain.num_objects == 0


def test_facts_of_a_method_are_read_with_those_of_its_bases():
    facts = {
        name: method_facts({"_target_": f"tuneforge.methods.{name}"})
        for name in ("lora.Lora", "qlora.QLora8bit", "prompts.PrefixTuning", "freeze.Freeze", "products.LoKr")
    }
    assert facts["lora.Lora"]["footprint"] == facts["qlora.QLora8bit"]["footprint"] == "lora"
    assert facts["qlora.QLora8bit"]["quantises"] == 8
    assert facts["lora.Lora"]["quantises"] == 0
    assert facts["qlora.QLora8bit"]["rewriting"] == facts["lora.Lora"]["rewriting"] != ()
    assert facts["prompts.PrefixTuning"]["packs"] is facts["prompts.PrefixTuning"]["checkpoints"] is False
    assert facts["freeze.Freeze"]["trains_base"] is True
    assert "LoKr" in facts["products.LoKr"]["not_on_conv1d"][""]


def test_what_the_source_says_of_a_method_is_what_its_class_says():
    """Two routes: the source, and the imported class."""
    targets = {compose([f"method={m}"]).tree["method"]["_target_"] for m in core_options()["method"]}
    assert len(targets) >= 14
    declared = read_signature("tuneforge.method.Method").facts
    assert set(declared) >= {"trains_base", "footprint", "quantises", "not_on_conv1d"}
    for target in targets:
        module, _, name = target.rpartition(".")
        method = getattr(importlib.import_module(module), name)
        read = method_facts({"_target_": target})
        assert {f: read[f] for f in declared} == {f: getattr(method, f) for f in declared}
