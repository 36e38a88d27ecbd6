"""A rule reads what an option does, not the name that a config gives it."""

import pytest

from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError

ESCAPES = [
    ("quantised-strategy", ["method=qlora", "strategy=deepspeed_zero2", "strategy.offload=cpu"]),
    ("quantised-strategy", ["method=qlora", "strategy=deepspeed_zero2_offload", "strategy.name=ddp"]),
    ("quantised-strategy", ["method=qlora", "strategy=deepspeed_zero1", "strategy.name=deepspeed_zero2"]),
    ("quantised-strategy", ["method=qlora", "strategy=fsdp_tp", "strategy.name=fsdp"]),
    ("quantised-strategy", ["method=qlora_8bit", "strategy=fsdp", "strategy.name=ddp"]),
    ("quantised-strategy", ["method=qlora", "method.name=lora", "strategy=deepspeed_zero3_offload"]),
    ("quantised-strategy", ["method=qlora_8bit", "strategy=deepspeed_zero2", "strategy.name=auto"]),
    ("single-is-one-device", ["strategy=single", "strategy.name=ddp", "trainer.devices=2"]),
]


@pytest.mark.parametrize(("code", "overrides"), ESCAPES, ids=lambda x: x if isinstance(x, str) else " ".join(x))
def test_another_name_does_not_escape_a_rule(code, overrides):
    with pytest.raises(TuneforgeError) as raised:
        compose(overrides)
    assert code in {p.code for p in raised.value.problems}


@pytest.mark.parametrize(
    "strategy", ["auto", "single", "ddp", "fsdp", "fsdp_offload", "deepspeed_zero2", "deepspeed_zero3"]
)
def test_what_is_proven_stays_whatever_it_is_named(strategy):
    named = ["strategy.name=mine", "method.name=mine"]
    composed = compose(["method=qlora", "optim=adamw", f"strategy={strategy}", *named])
    assert composed.choices["strategy"] == strategy
