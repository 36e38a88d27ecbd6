"""Models of a config without its weights, and the errors of configs that no architecture has."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel

from tuneforge.compat import weights_are_data
from tuneforge.errors import TuneforgeError
from tuneforge.schema.model import Model


@contextmanager
def odd_values_told() -> Iterator[None]:
    """Values in a model's files that no architecture has: they raise whatever the class that meets them raises.

    Raises:
        ValueError: what was raised inside, unless it says what is wrong by itself.
    """
    try:
        yield
    except (TuneforgeError, HfHubHTTPError, SafetensorError, ImportError, OSError, ValueError):
        raise
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, RecursionError) and "mismatched" not in str(error):
            raise
        raise ValueError(f"its config does not fit its weights: {error}") from error
    except Exception as error:
        raise ValueError(f"its config: {type(error).__name__}: {error}") from error


def from_config(kind: Any, model: Model, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The model of an auto class with new weights. Code of its own is that of the pinned commit, and nobody is asked.

    Raises:
        ValueError: the auto class does not know the architecture, or it cannot be built.
    """
    with weights_are_data(code_revision=model.revision), odd_values_told():
        built: PreTrainedModel = kind.from_config(config, trust_remote_code=model.trust_remote_code, **options)
    return built
