"""The learning rate of every method and objective, as a table: a change of a number is a change here."""

import pytest

from tuneforge.compose import compose
from tuneforge.front import front, groups

# method -> sft, pretrain, continued, classification; for models thousands of units wide (model.lr_scale=1).
TABLE = {
    "full": (5e-5, 3e-4, 2e-5, 2e-5),
    "freeze": (5e-5, 1e-4, 2e-5, 5e-5),
    "lora": (2e-4, 2e-4, 1e-4, 2e-4),
    "qlora": (2e-4, 2e-4, 1e-4, 2e-4),
    "qlora_8bit": (2e-4, 2e-4, 1e-4, 2e-4),
    "rslora": (2e-4, 2e-4, 1e-4, 2e-4),
    "pissa": (2e-4, 2e-4, 1e-4, 2e-4),
    "olora": (2e-4, 2e-4, 1e-4, 2e-4),
    "dora": (1e-4, 1e-4, 1e-4, 1e-4),
    "qdora": (1e-4, 1e-4, 1e-4, 1e-4),
    "lora_plus": (5e-5, 5e-5, 5e-5, 5e-5),
    "loha": (2e-4, 2e-4, 1e-4, 2e-4),
    "lokr": (5e-4, 5e-4, 2e-4, 5e-4),
    "adalora": (5e-4, 5e-4, 2e-4, 5e-4),
    "vera": (4e-3, 4e-3, 2e-3, 4e-3),
    "eva": (5e-4, 5e-4, 2e-4),
    "corda": (2e-5, 2e-5, 1e-5),
    "vblora": (1e-3, 1e-3, 5e-4, 1e-3),
    "bottleneck_adapter": (3e-4, 3e-4, 1e-4, 3e-4),
    "ia3": (3e-3, 3e-3, 1e-3, 3e-3),
    "fourierft": (3e-3, 3e-3, 1e-3, 3e-3),
    "prompt_tuning": (3e-2, 3e-2, 3e-2, 1e-3),
    "p_tuning": (3e-3, 3e-3, 3e-3, 1e-3),
    "prefix_tuning": (1e-2, 1e-2, 1e-2, 1e-2),
}
RECIPES = {
    ("instruct", "lora"): 2e-4,
    ("chat", "lora"): 2e-4,
    ("code", "lora"): 1e-4,
    ("domain", "lora"): 5e-5,
    ("small_data", "lora"): 3e-4,
    ("classification", "lora"): 2e-4,
    ("classification", "full"): 2e-5,
    ("code", "full"): 2.5e-5,
    ("continued_pretrain", "full"): 2e-5,
    ("continued_pretrain", "lora"): 1e-4,
    ("pretrain", "full"): 3e-4,
}


def rate(*overrides: str) -> float:
    return compose([*overrides, "model.lr_scale=1"]).tree["optim"]["lr"]


def test_every_method_is_in_the_table():
    with front() as loader:
        assert set(groups(loader)["method"]) == set(TABLE)


@pytest.mark.parametrize("method", TABLE)
def test_a_methods_rates_are_these(method):
    objectives = [f"task_recipe.objective={o}" for o in ("sft", "pretrain", "continued")]
    if len(TABLE[method]) > len(objectives):  # the others start from rows of next tokens, and are refused
        objectives.append("task_recipe=classification")
    assert tuple(rate(f"method={method}", o, "optim=adamw") for o in objectives) == TABLE[method]


@pytest.mark.parametrize(("recipe", "method"), RECIPES)
def test_a_recipes_rates_are_these(recipe, method):
    assert rate(f"task_recipe={recipe}", f"method={method}") == pytest.approx(RECIPES[recipe, method])


def test_clipping_is_tight_for_adapters_and_1_for_the_rest():
    clips = {m: compose([f"method={m}"]).tree["trainer"]["gradient_clip_val"] for m in TABLE}
    assert {m for m, c in clips.items() if c == 1.0} == {
        *("full", "freeze", "prompt_tuning", "p_tuning", "prefix_tuning"),
    }
    assert set(clips.values()) == {0.3, 1.0}


def test_an_optimizer_of_other_rates_scales_them():
    assert rate("optim=lion") == pytest.approx(4e-5)
    assert rate("optim=muon") == rate("optim=adamw") == 2e-4
