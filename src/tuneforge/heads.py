"""Heads of classifiers: which modules of a model are new, and trained in full beside whatever a method changes."""

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


def is_classifier(model: nn.Module) -> bool:
    """Whether the model ends in a classification head of transformers."""
    return type(model).__name__ in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()


def head_modules(model: nn.Module) -> list[str]:
    """Full names of a classifier's modules with weights outside of its backbone, and of the backbone's pooler.

    A masked language model's checkpoint has no pooler: like the head it is drawn anew, and must be trained and saved.
    Empty for any other model.
    """
    if not isinstance(model, PreTrainedModel) or not is_classifier(model):
        return []
    prefix = model.base_model_prefix
    heads = [name for name, child in model.named_children() if name != prefix and any(True for _ in child.parameters())]
    poolers = [f"{prefix}.{name}" for name, child in model.base_model.named_children() if name == "pooler"]
    return heads + poolers


def in_head(name: str, heads: list[str]) -> bool:
    """Whether a module or parameter of this full name is one of the heads or in one."""
    return any(name == head or name.startswith(f"{head}.") for head in heads)
