"""Text out of a model under training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt."""

    tokens: list[int]
    """With the one that ended it."""
    ended: bool
    """It came to an end by itself."""


@torch.no_grad()
def continuation(module: Any, prompt: NDArray[np.int64], max_new_tokens: int, stop: Sequence[int] = ()) -> Continuation:
    """Greedily, from token ids of shape [tokens]; `stop` are ids that end it, beside the tokenizer's EOS."""
    tokenizer = module.context.tokenizer
    ends = sorted({tokenizer.eos_token_id, *stop})
    ids = torch.from_numpy(prompt)[None].to(module.device)
    generated = module.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
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
        stop: token ids that end one, beside the tokenizer's EOS.
    """
    written = [continuation(module, prompt, max_new_tokens, stop) for prompt in prompts]
    return [module.context.tokenizer.decode(w.tokens, skip_special_tokens=True).strip() for w in written]
