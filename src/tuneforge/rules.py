"""What cannot go together across groups: one small function a rule, all of them asked before any weight loads."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tuneforge.errors import Problem
from tuneforge.schema import Config

Rule = Callable[[Config, Mapping[str, Any]], Problem | None]
_RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    """Register a rule; its docstring is what a listing of the rules shows."""
    assert check.__doc__, f"rule {check.__name__} has no docstring"
    _RULES.append(check)
    return check


def broken(config: Config, tree: Mapping[str, Any]) -> Iterator[Problem]:
    """The problems of all rules that this config breaks. `tree` also holds the options of `_target_`s."""
    for check in _RULES:
        problem = check(config, tree)
        if problem is not None:
            yield problem


@rule
def remote_code_is_pinned(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Code that comes with weights runs only at a full commit hash."""
    revision = config.model.revision or ""
    pinned = len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)
    if not config.model.trust_remote_code or pinned:
        return None
    return Problem(
        "remote-code-unpinned",
        f"model.trust_remote_code=true needs a pinned model.revision, got {config.model.revision!r}",
        "model.revision",
        fix="read the code at one commit, then set model.revision=<its 40-digit hash>: a branch can change under you",
    )


@rule
def adapters_need_pretrained_weights(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """An adapter on a frozen random base learns nothing worth keeping."""
    if config.model.init == "pretrained" or config.method.name == "full":
        return None
    return Problem(
        "adapter-on-random-base",
        f"method={config.method.name} trains an adapter, and model.init=scratch leaves a random base frozen under it",
        "method",
        fix="use method=full, or model.init=pretrained",
    )


@rule
def one_process_is_one_device(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """strategy=single is one process on one device."""
    devices = config.trainer.devices
    if config.strategy.name != "single" or devices in ("auto", 1):
        return None
    return Problem(
        "single-is-one-device",
        f"trainer.devices={devices} asks for several processes, and strategy=single runs one",
        "strategy",
        fix="use strategy=ddp, or trainer.devices=1",
    )


@rule
def an_eval_split_is_there(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """The best checkpoint is picked by eval loss, so some rows must be held out."""
    split = config.data.split
    if split.eval_path is not None or split.eval_fraction > 0 or split.by == "source":
        return None
    return Problem(
        "no-eval-split",
        "is 0 and there is no data.split.eval_path: nothing would show overfitting or pick the best checkpoint",
        "data.split.eval_fraction",
        fix="set data.split.eval_fraction=0.1, or data.split.eval_path=FILE",
    )


@rule
def restarted_weights_have_no_adapter(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """`model.adapter` continues an adapter; a method that trains none cannot use it."""
    if config.model.adapter is None or config.method.name != "full":
        return None
    return Problem(
        "adapter-without-method",
        "model.adapter continues from an adapter, and method=full trains none",
        "model.adapter",
        fix="use the method that made the adapter (adapter_config.json names it), or drop model.adapter",
    )
