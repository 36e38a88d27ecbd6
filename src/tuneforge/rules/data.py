"""What rows, formats, objectives and batches need of each other."""

from collections.abc import Mapping
from typing import Any

from tuneforge.errors import Problem, did_you_mean
from tuneforge.option_targets import FORMAT
from tuneforge.rules.registry import rule
from tuneforge.schema import Config
from tuneforge.schema.facts import method_facts
from tuneforge.schema.signature import read_signature
from tuneforge.schema.source import UnreadableTargetError
from tuneforge.targets import trusted, why_borrowed, why_untrusted


def classifies(config: Config) -> bool:
    """Whether the run learns labels of texts."""
    return config.task_recipe.objective == "classification"


@rule
def a_path_has_a_reader(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """`data.path` and `data.split.eval_path` are for sources that read files: another would train on its own rows."""
    if "path" in read_signature(tree["data"]["_target_"]).fields:
        return None
    key = "data.path" if config.data.path is not None else "data.split.eval_path"
    if config.data.path is None and config.data.split.eval_path is None:
        return None
    return Problem(
        "path-without-reader",
        f"names a file, and the chosen source ({tree['data']['_target_']}) reads none: its own rows would be used",
        key,
        fix="add data=file, or drop the path",
    )


@rule
def the_format_is_there(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """`data.format` is one of ours, or a function that an option of a plugin names there."""
    wanted = config.data.format
    known = ("auto", "alpaca", "chat", "prompt_completion", "text", "classification")
    if wanted in known:
        return None
    if "." not in wanted:
        message = f"must be {' or '.join(map(repr, known))}, or the dotted path of a function, got {wanted!r}"
        return Problem("unknown-format", message, "data.format", fix=did_you_mean(wanted, known))
    refusal = why_untrusted(FORMAT, wanted)
    try:
        refusal = refusal or why_borrowed(FORMAT, read_signature(wanted))
    except UnreadableTargetError as error:
        refusal = f"{wanted} cannot be found: {error}"
    fix = did_you_mean(wanted, {*known, *trusted(FORMAT)})
    return Problem("unknown-format", refusal, "data.format", fix=fix) if refusal else None


@rule
def labels_have_their_objective(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Rows with labels are for the classification objective, and it learns from no others."""
    labelled, wanted = config.data.format == "classification", config.data.format
    if labelled == classifies(config) or "." in wanted:
        return None
    if labelled:
        message = f"reads labels, and task_recipe.objective={config.task_recipe.objective} learns from none"
        fix = "use task_recipe=classification, or data.format=text for the text alone"
    else:
        message = f"is {wanted}, and task_recipe.objective=classification learns labels"
        fix = "set data.format=classification, with rows of text and label (or labels: a list)"
    return Problem("labels-without-objective", message, "data.format", fix=fix)


@rule
def texts_to_classify_stay_whole(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """A text with a label is one row: packed, one label would stand for several, and chunked, for parts."""
    if not classifies(config) or not (config.data.packing or config.data.overlong == "chunk"):
        return None
    if config.data.packing:
        message, key, fix = "packs texts into rows", "data.packing", "set data.packing=false"
    else:
        message, key, fix = "cuts texts into pieces", "data.overlong", "use data.overlong=truncate or drop"
    return Problem("labelled-row", f"{message}, and a label is of one whole text", key, fix=fix)


@rule
def next_tokens_are_for_language_models(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Replayed rows, `regularise.*` and starts from data are about next tokens; a classification head predicts none."""
    if not classifies(config):
        return None
    if method_facts(tree["method"])["observes"]:
        message = (
            f"method={config.method.name} starts from rows of next tokens, and a classification head predicts none"
        )
        return Problem("no-next-tokens", message, "method", fix="use method=lora")
    given = {
        "data.replay.fraction": config.data.replay.fraction,
        "regularise.ewc": config.regularise.ewc,
        "regularise.kl": config.regularise.kl,
    }
    key = next((name for name, value in given.items() if value), None)
    if key is None:
        return None
    message = f"is {given[key]}, which is about next tokens, and a classification head predicts none"
    return Problem("no-next-tokens", message, key, fix="set it to 0")


@rule
def an_eval_split_is_there(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """The best checkpoint is picked by eval loss, so some rows must be held out."""
    split = config.data.split
    if split.eval_path is not None or split.eval_fraction > 0 or split.by == "source":
        return None
    reads_files = "path" in read_signature(tree["data"]["_target_"]).fields
    return Problem(
        "no-eval-split",
        "is 0 and there is no data.split.eval_path: nothing would show overfitting or pick the best checkpoint",
        "data.split.eval_fraction",
        fix=f"set data.split.eval_fraction=0.1{', or data.split.eval_path=FILE' if reads_files else ''}",
    )


@rule
def chunks_are_raw_text(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Cutting a long conversation into rows leaves answers without their questions."""
    if config.data.overlong != "chunk" or config.data.train_on == "all":
        return None
    return Problem(
        "chunked-answers",
        "chunk cuts a document into rows, and data.train_on=assistant would train on answers cut off from their "
        "questions",
        "data.overlong",
        fix="use data.overlong=truncate or drop; or data.train_on=all for raw text",
    )
