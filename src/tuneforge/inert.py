"""Keys that a user set and that nothing reads in this composition: said, never swallowed.

A key that no composition knows is an error of the schema. Here are those that are right in themselves: a rank for a
method without adapters, an epoch count beside a step count.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuneforge.errors import Problem
from tuneforge.interpolation import references
from tuneforge.option_files import PLUGIN, SWEEPS
from tuneforge.provenance import Origin
from tuneforge.rules import classifies
from tuneforge.schema import Config
from tuneforge.schema.signature import read_signature

HINTS = (
    "task_recipe.rank",
    "task_recipe.alpha",
    "task_recipe.dropout",
    "task_recipe.targets",
    "method.lr",
    "method.clip",
    "model.lr_scale",
    "task_recipe.lr_scale",
    "task_recipe.min_batch",
)
"""Read by other keys' interpolations, and by nothing else."""

FOR_REPAIR = ("in_a_row", "rewinds", "rewind_steps", "keep_every", "keep_at_most_gb", "repairs")
"""Options of guards that tell how they repair."""

FOR_TARGETS = ("data.encoding", "optim.lr", "scheduler.warmup_ratio", "strategy.process_group_backend")
"""Fields that a node always has and that only its `_target_` reads, if it takes them."""


def keys_without_effect(config: Config, tree: Mapping[str, Any], origins: Mapping[str, Origin]) -> Iterator[Problem]:
    """A problem for each key that the user set and that this run does not read."""
    why = {**_unused_hints(tree, origins), **_outdone(config), **_not_taken(tree), **_idle_guards(config, tree)}
    for path, origin in sorted(origins.items()):
        reason = next((r for key, r in why.items() if path == key or path.startswith(f"{key}.")), "")
        if reason and set_by_user(origin):
            yield Problem("no-effect", f"has no effect in this run: {reason}", path, origin.where, "drop it")


def set_by_user(origin: Origin) -> bool:
    """Whether it is an override or stands in a file of the user's own, rather than in one that ships."""
    return not origin.where.startswith(("conf/", f"{SWEEPS}/", "default of ", PLUGIN))


def _unused_hints(tree: Mapping[str, Any], origins: Mapping[str, Origin]) -> dict[str, str]:
    read = {key for path, o in origins.items() if o.expression for key in references(o.expression, tree, path)}
    unread = {}
    for path in origins:
        hint = next((h for h in HINTS if path == h or path.startswith(f"{h}.")), None)
        if hint is not None and path not in read and hint not in read:
            readers = {
                "method.clip": "trainer.gradient_clip_val",
                "task_recipe.min_batch": "callbacks.quality_gates.min_batch",
            }
            reader = readers.get(hint, "the method")
            reader = "optim.lr" if hint == "method.lr" or hint.endswith(".lr_scale") else reader
            unread[path] = f"{reader} does not read it"
    return unread


def _not_taken(tree: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for path in FOR_TARGETS:
        group, _, name = path.partition(".")
        target = tree[group]["_target_"]
        signature = read_signature(target)
        if name not in signature.fields and not signature.accepts_any:
            found[path] = f"{target} takes no {name!r}"
    return found


def _idle_guards(config: Config, tree: Mapping[str, Any]) -> dict[str, str]:
    """Options of guards that are off, or that another action would use; a patience that no run of this length has."""
    found: dict[str, str] = {}
    for name, node in tree["callbacks"].items():
        own = [k for k in node if k not in ("_target_", "action")]
        if node.get("action") == "none":
            found |= {f"callbacks.{name}.{k}": f"callbacks.{name}.action is none" for k in own}
        elif node.get("action") != "repair":
            found |= {f"callbacks.{name}.{k}": "it is for action=repair" for k in FOR_REPAIR if k in own}
    ends = tree["callbacks"].get("early_stopping", {})
    if "patience" in ends and not ends["patience"]:
        found |= {f"callbacks.early_stopping.{k}": "patience is null" for k in ("monitor", "mode", "min_delta")}
    if config.samples.num < 3:
        watch = tree["callbacks"].get("generation_watch", {})
        found |= {f"callbacks.generation_watch.{k}": "samples.num is under 3" for k in watch}
    interval = config.trainer.val_check_interval
    if isinstance(interval, float) and interval and (ends.get("patience") or 0) >= 1 / interval:
        evaluations = f"the run has {math.ceil(1 / interval)} evaluations (trainer.val_check_interval={interval})"
        found["callbacks.early_stopping.patience"] = evaluations
    return found


def _outdone(config: Config) -> dict[str, str]:
    """Keys that another key makes pointless."""
    found = {}
    if config.batch.effective_tokens is not None:
        found["batch.effective"] = "batch.effective_tokens is given"
    if config.trainer.max_steps is not None:
        found["trainer.max_epochs"] = "trainer.max_steps is given"
    if config.data.split.eval_path is not None:
        found |= dict.fromkeys(("data.split.eval_fraction", "data.split.by"), "data.split.eval_path is given")
    if classifies(config):
        found["data.train_on"] = "the loss is on the label"
        found["samples.max_new_tokens"] = "a label is predicted, not written"
        found["model.chat_template"] = "a text is classified as it is"
        found["data.max_turn_documents"] = "a text is one document"
    elif config.data.labels is not None:
        found["data.labels"] = "the objective learns no labels"
    if config.samples.num == 0:
        found["samples.max_new_tokens"] = "samples.num is 0"
    if not config.regularise.ewc:
        found |= dict.fromkeys(("regularise.path", "regularise.rows"), "regularise.ewc is 0")
    if not config.sanity.overfit_one_batch:
        found |= dict.fromkeys(("sanity.steps", "sanity.below"), "sanity.overfit_one_batch is off")
    if config.model.path.startswith("bundled:") or Path(config.model.path).expanduser().is_dir():
        found["model.revision"] = "model.path is on this machine and has no revisions"
    if not isinstance(config.model.adapter, list) or len(config.model.adapter) < 2:
        found["model.combination"] = "model.adapter names no adapters to combine"
    elif config.model.combination.type not in ("ties", "dare_linear", "dare_ties"):
        found["model.combination.density"] = f"model.combination.type={config.model.combination.type} drops no weights"
    if config.trainer.devices == 1:
        found["strategy.process_group_backend"] = "one process talks to no other"
    return found
