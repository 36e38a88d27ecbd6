"""What guards and checkpoints watch, and what they need to act."""

from collections.abc import Iterator, Mapping
from typing import Any

from tuneforge.errors import Problem, did_you_mean
from tuneforge.rules.data import classifies
from tuneforge.rules.registry import rule
from tuneforge.schema import Config

MEASURES = {
    "eval/loss": "min",
    "eval/perplexity": "min",
    "eval/accuracy": "max",
    "eval/macro_f1": "max",
    "eval/micro_f1": "max",
    "eval/subset_accuracy": "max",
}
"""What our objectives measure, and which way it is better."""


def measures(config: Config, tree: Mapping[str, Any]) -> list[str] | None:
    """What the evaluation of this config measures; None where a plugin's objective measures what it likes."""
    if not tree["task_recipe"]["_target_"].startswith("tuneforge."):
        return None
    return [m for m in MEASURES if m == "eval/loss" or (m != "eval/perplexity") == classifies(config)]


@rule
def a_watched_measure_is_measured(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """What picks the best checkpoint, or ends a run early, is something that the objective measures."""
    known = measures(config, tree)
    if known is None:
        return None
    for name, monitor, _ in _watching(tree):
        if monitor not in known:
            message = f"is {monitor}, which task_recipe.objective={config.task_recipe.objective} does not measure"
            return Problem("unknown-measure", message, f"callbacks.{name}.monitor", fix=did_you_mean(monitor, known))
    return None


@rule
def a_watched_measure_is_the_right_way_up(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Of a loss the lowest is the best, of an accuracy the highest: the other way the worst would be kept."""
    for name, monitor, mode in _watching(tree):
        if MEASURES.get(monitor, mode) != mode:
            message = f"is {mode}, and {monitor} is better the other way"
            return Problem(
                "measure-upside-down", message, f"callbacks.{name}.mode", fix=f"set it to {MEASURES[monitor]}"
            )
    return None


@rule
def a_run_has_one_best(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Early stopping watches what the best checkpoint is picked by: what is restored is then what it waited for."""
    watched = {name: (monitor, mode) for name, monitor, mode in _watching(tree)}
    one, other = watched.get("early_stopping"), watched.get("checkpoints")
    if one is None or other is None or one == other:
        return None
    return Problem(
        "two-bests",
        f"is {one[0]} ({one[1]}), and callbacks.checkpoints keeps the best by {other[0]} ({other[1]})",
        "callbacks.early_stopping.monitor",
        fix="drop it, and set callbacks.checkpoints.monitor and mode: early stopping follows them",
    )


@rule
def what_ends_a_run_has_a_best_to_restore(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """A guard that may end the run leaves the best checkpoint, so there must be checkpoints."""
    nodes = tree["callbacks"]
    if any(str(node["_target_"]).endswith(".Checkpoints") for node in nodes.values()):
        return None
    for name, node in nodes.items():
        if node.get("action") == "stop" or (name == "early_stopping" and node.get("patience")):
            key = "patience" if name == "early_stopping" else "action"
            message = "ends the run and restores the best checkpoint, and there are no checkpoints"
            off = "null" if key == "patience" else "warn"
            fix = f"set callbacks.{name}.{key}={off}, or keep callbacks.checkpoints"
            return Problem("nothing-to-restore", message, f"callbacks.{name}.{key}", fix=fix)
    return None


@rule
def what_is_forgotten_has_tasks(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """A check of forgetting that is to act needs tasks that the base can do; `model=tiny` alone brings some."""
    node = tree["callbacks"].get("forgetting_check", {})
    asked = node.get("action") in ("stop", "repair")
    if not asked or node.get("tasks") or config.model.path == "bundled:tiny":
        return None
    return Problem(
        "no-forgetting-tasks",
        f"is {node['action']}, and there are no tasks to see forgetting by: model.path={config.model.path} brings none",
        "callbacks.forgetting_check.action",
        fix="give some: 'callbacks.forgetting_check.tasks={facts: rows.jsonl}', of rows with question, choices and "
        "answer, or of any text that the base writes well",
    )


@rule
def what_is_written_is_there_to_watch(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """A watch on what the model writes that is to end the run needs prompts, three at least."""
    if tree["callbacks"].get("generation_watch", {}).get("action") != "stop" or config.samples.num >= 3:
        return None
    return Problem(
        "nothing-to-generate",
        f"is stop, and samples.num={config.samples.num} leaves too few prompts to tell a habit from an odd answer",
        "callbacks.generation_watch.action",
        fix="set samples.num=3 or more",
    )


@rule
def guards_of_text_watch_text(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Forgetting and repetition are seen in next tokens, which a classification head does not predict."""
    for name in ("forgetting_check", "generation_watch"):
        action = tree["callbacks"].get(name, {}).get("action")
        if classifies(config) and action in ("stop", "repair"):
            message = f"is {action}, and a classification head predicts no next tokens to see it by"
            return Problem("no-next-tokens", message, f"callbacks.{name}.action", fix="set it to warn or none")
    return None


def _watching(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, monitor and mode of each callback that watches a measure and is on."""
    for name, node in tree["callbacks"].items():
        if "monitor" in node and (name != "early_stopping" or node.get("patience")):
            yield name, node["monitor"], node.get("mode", "min")
