"""Text out of a model under training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@torch.no_grad()
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
    tokenizer = module.context.tokenizer
    answers = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt)[None].to(module.device)
        generated = module.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted({tokenizer.eos_token_id, *stop}),
            use_cache=True,
        )
        answers.append(tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return answers
