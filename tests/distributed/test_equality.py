"""A strategy changes where numbers are computed, not which: five steps on two processes are those of one."""

import importlib.util
from pathlib import Path

import grid
import pytest

from tuneforge import rules
from tuneforge.artifacts.folder import read_json
from tuneforge.rules import registry

# Of each way to split weights one pair; the whole grid is the soak's.
COVER = (
    ("prompt_tuning", "fsdp"),
    ("full", "fsdp_offload"),
    ("lora", "fsdp_tp"),
)
PAGE = Path(__file__).parents[2] / "docs" / "strategies.md"


@pytest.fixture(scope="module")
def cover(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cover")
    grid.run([(m, "single") for m in dict(COVER)], 1, folder)
    grid.run(list(COVER), 2, folder)
    return folder


@pytest.mark.parametrize(("method", "strategy"), COVER)
def test_a_pair_is_equal(cover, method, strategy):
    loss, norm = grid.differences(cover, method, strategy)
    assert loss < grid.LOSS
    assert norm < grid.NORM
    assert any((cover / f"{method}-{strategy}").glob("*/model.safetensors")) == (method == "full")
    assert any((cover / f"{method}-{strategy}").glob("*/adapter_model.safetensors")) != (method == "full")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_whole_grid_is_equal_or_refused(tmp_path):
    has_deepspeed = importlib.util.find_spec("deepspeed") is not None
    strategies = tuple(s for s in grid.STRATEGIES if has_deepspeed or s not in grid.STAGES)
    cells = grid.measured(tmp_path, strategies)
    assert len(cells) == len(grid.METHODS) * len(strategies) >= 36
    for pair, cell in cells.items():
        if cell.startswith("`"):
            continue
        loss, norm = map(float, cell.split(" / "))
        assert loss < grid.LOSS, (pair, cell)
        assert norm < grid.NORM, (pair, cell)
        method, strategy = pair
        one, two = tmp_path / f"{method}-single", tmp_path / f"{method}-{strategy}"
        records = [read_json(folder / "run.json") for folder in (one, two)]
        assert records[0]["parameters"] == records[1]["parameters"], pair
        assert records[1]["settled"]["world_size"] == (1 if strategy == "fsdp_tp" else 2), pair
        assert records[1]["settled"]["accumulate"] == 2
        # int8 scales the activations of a pass together, and an evaluation has other rows in a pass.
        near = 1e-3 if method == "qlora_8bit" else grid.LOSS
        for moment in ("before", "after"):
            alone, spread = (r["metrics"][moment]["eval/loss"] for r in records)
            assert spread == pytest.approx(alone, rel=near), pair
        if strategy in grid.STAGES:
            grid.assert_same_checkpoint(one, two)


def test_the_page_has_every_pair_and_its_refusals_are_the_rules():
    text = PAGE.read_text(encoding="utf-8").split(grid.BEGIN)[1].split(grid.END)[0]
    rows = [[c.strip() for c in line.strip("|\n").split("|")] for line in text.strip().splitlines()]
    assert rows[0] == ["method", *grid.STRATEGIES]
    assert [r[0] for r in rows[2:]] == list(grid.METHODS)
    for method, *cells in rows[2:]:
        for strategy, cell in zip(grid.STRATEGIES, cells, strict=True):
            code = grid.refusal(method, strategy)
            if code:
                assert cell == f"`{code}`", (method, strategy)
            else:
                loss, norm = map(float, cell.split(" / "))
                assert loss < grid.LOSS
                assert norm < grid.NORM


@pytest.mark.parametrize(
    ("lifted", "pair", "extra"),
    [
        ("a_method_works_on_split_weights", ("adalora", "fsdp"), ()),
        ("a_method_works_on_split_weights", ("vblora", "fsdp"), ()),
        ("a_quantised_base_has_a_proven_strategy", ("qlora_8bit", "fsdp"), ()),
        ("split_weights_have_an_optimizer_that_splits", ("lora", "fsdp"), ("optim=adafactor",)),
        ("split_weights_have_an_optimizer_that_splits", ("lora", "fsdp"), ("optim=lion",)),
        ("split_weights_have_an_optimizer_that_splits", ("lora", "fsdp"), ("optim=adamw_8bit",)),
        ("weights_held_in_place_are_whole", ("lora", "fsdp"), ("regularise.ewc=1e4",)),
        ("what_is_proven_on_split_matrices", ("dora", "fsdp_tp"), ()),
        ("what_is_proven_on_split_matrices", ("ia3", "fsdp_tp"), ()),
    ],
)
@pytest.mark.soak_full
def test_a_refusal_is_still_needed(monkeypatch, tmp_path, lifted, pair, extra):
    """Without the rule the pair fails, or gives other numbers."""
    monkeypatch.setattr(registry, "RULES", [r for r in rules.RULES if r.__name__ != lifted])
    monkeypatch.setattr(grid, "OPTIONS", tuple(o for o in grid.OPTIONS if o != "optim=adamw" or not extra) + extra)
    grid.run([(pair[0], "single")], 1, tmp_path)
    grid.run([pair], 2, tmp_path)
    loss, norm = grid.differences(tmp_path, *pair)
    assert loss > grid.LOSS or norm > grid.NORM
