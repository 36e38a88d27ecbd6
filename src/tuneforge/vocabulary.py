"""New tokens: into the tokenizer, into the model, and known to the method that trains them."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from tuneforge.errors import TuneforgeError

ADDED = "tuneforge_added_tokens"
"""Where a model keeps the ids of `model.add_tokens` for the method."""


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Add `model.add_tokens` to the vocabulary.

    Raises:
        TuneforgeError: one is a token already.
    """
    known = [token for token in tokens if token in tokenizer.get_vocab()]
    if known or len(set(tokens)) < len(tokens):
        repeated = known or [token for token in tokens if tokens.count(token) > 1]
        raise TuneforgeError(
            "token-exists",
            f"adds {', '.join(map(repr, dict.fromkeys(repeated)))}, which the vocabulary has already",
            path="model.add_tokens",
            fix="drop it: a token that is there is used as it is",
        )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])


def make_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Give the added tokens embeddings, drawn around the mean of the others; many models have rows to spare."""
    if not tokens:
        return
    if len(tokenizer) > len(model.get_input_embeddings().get_parameter("weight")):
        model.resize_token_embeddings(len(tokenizer))
    note_added(model, tokenizer, tokens)


def note_added(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Leave the ids of the added tokens where the method finds them."""
    setattr(model, ADDED, [tokenizer.convert_tokens_to_ids(token) for token in tokens])


def added_tokens(model: PreTrainedModel) -> list[int]:
    """Ids of the tokens that `make_room` made room for."""
    return list(getattr(model, ADDED, []))


def digests(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Config key -> sha256 of what it brings in that decides how rows become tokens."""
    return {
        "model.chat_template": _sha256(tokenizer.chat_template),
        "model.path": _sha256([_vocabulary(tokenizer), tokenizer.special_tokens_map]),
    }


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> Any:
    """All that makes tokens, without padding and truncation, which a tokenizer keeps of its last call."""
    if not tokenizer.is_fast:
        return [type(tokenizer).__name__, tokenizer.get_vocab()]
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: part for key, part in parts.items() if key not in ("version", "padding", "truncation")}


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
