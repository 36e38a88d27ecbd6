"""Text out of a model under training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PretrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from tuneforge.errors import TuneforgeError
from tuneforge.locate import locate
from tuneforge.schema.model import Model


def generation_config(model: Model, architecture: PretrainedConfig, ends: Sequence[int]) -> GenerationConfig:
    """The base's generation config, which also stops at the tokens that this run teaches answers to end in.

    It is exported with the result: a base often stops at `<|endoftext|>` alone, and would run on after `<|im_end|>`.

    Args:
        model: the base.
        architecture: its config, where it has no generation config.
        ends: ids that end an answer.
    """
    folder = locate(model.path)
    try:
        config = GenerationConfig.from_pretrained(folder, revision=model.revision or "main")
        known = _token_ids(config.eos_token_id)
    except Exception as error:  # the values in it raise whatever the class that meets them raises
        if (Path(folder) / GENERATION_CONFIG_NAME).is_file():
            raise TuneforgeError(
                "unloadable-model",
                f"{model.path}: {GENERATION_CONFIG_NAME} cannot be read: {str(error).splitlines()[0]}",
                path="model.path",
                fix="copy this file again, or remove it: then the model's config.json counts",
            ) from error
        if not isinstance(error, OSError):
            raise
        config = GenerationConfig.from_model_config(architecture)
        known = _token_ids(config.eos_token_id)
    ids = list(dict.fromkeys([*known, *ends]))
    config.eos_token_id = ids[0] if len(ids) == 1 else ids
    return config


def _token_ids(given: object) -> list[int]:
    found = given if isinstance(given, list) else [] if given is None else [given]
    ids = [token for token in found if isinstance(token, int)]
    if ids != found:
        raise ValueError(f"eos_token_id is {given!r}, and wanted are numbers of tokens")
    return ids


def stop_ids(config: GenerationConfig) -> list[int]:
    """The tokens that end a generation."""
    found: int | list[int] | None = config.eos_token_id
    return [found] if isinstance(found, int) else list(found or [])


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt."""

    tokens: list[int]
    """With the one that ended it."""
    ended: bool
    """It came to an end by itself."""

    @property
    def text(self) -> list[int]:
        """The tokens without the one that ended it: not every end-of-turn token is registered as special."""
        return self.tokens[:-1] if self.ended else self.tokens


@torch.no_grad()
def continuation(module: Any, prompt: NDArray[np.int64], max_new_tokens: int, stop: Sequence[int] = ()) -> Continuation:
    """Greedily, from token ids of shape [tokens]; it ends as the exported model will, or at an id of `stop`."""
    tokenizer = module.context.tokenizer
    ends = sorted({*stop_ids(module.context.generation), *stop})
    ids = torch.from_numpy(prompt)[None].to(module.device)
    # Callbacks run outside of Lightning's autocast, in which flash attention refuses weights stored in fp32.
    with module.trainer.precision_plugin.forward_context():
        generated = module.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,  # greedy, also where the base's own config searches or writes several
            num_return_sequences=1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends,
            use_cache=True,
        )
    tokens: list[int] = generated[0, ids.shape[1] :].tolist()
    return Continuation(tokens, bool(tokens) and tokens[-1] in ends)


def generate(
    module: Any, prompts: Sequence[NDArray[np.int64]], max_new_tokens: int, stop: Sequence[int] = ()
) -> list[str]:
    """Greedy continuations of token ids, one prompt at a time, special tokens left out.

    Args:
        module: a LightningModule with `model` and `context`, as our objectives are.
        prompts: each of shape [tokens].
        max_new_tokens: longest continuation.
        stop: token ids that end one, beside those of the exported generation config.
    """
    written = [continuation(module, prompt, max_new_tokens, stop) for prompt in prompts]
    return [module.context.tokenizer.decode(w.text, skip_special_tokens=True).strip() for w in written]
