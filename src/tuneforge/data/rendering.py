"""A chat template applied to messages, with every failure reported as an error of the template or of the row."""

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from tuneforge.errors import TuneforgeError

ROW_CODES = ("template-refuses-row", "template-splits-wrongly", "special-tokens-in-text")
"""Errors about one row: `data.on_bad=skip` leaves such a row out and counts it."""


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], origin: str, generate: bool = False
) -> str:
    """Render messages as text.

    Args:
        tokenizer: has the template.
        messages: turns; may be empty, as before an answer that opens the conversation.
        origin: the row, for errors.
        generate: add the generation prompt.

    Raises:
        TuneforgeError: the template refuses the messages, or fails on them.
    """
    try:
        # A batch of one: transformers refuses an empty conversation otherwise, and a first answer has one before it.
        text = tokenizer.apply_chat_template([list(messages)], tokenize=False, add_generation_prompt=generate)[0]
    except Exception as error:  # A template is a program of the user's: whatever it raises is about that program.
        refused = isinstance(error, TemplateError)
        said = str(error).strip() or "no reason given"
        roles = ", ".join(str(m["role"]) for m in messages) or "none"
        raise TuneforgeError(
            "template-refuses-row",
            f"the chat template {'refuses' if refused else 'fails on'} {origin} (roles: {roles}): "
            + (said if refused else f"{type(error).__name__}: {said}"),
            path="model.chat_template",
            fix="change the rows (many templates take no system role and want user and assistant in turn), leave them "
            "out (data.on_bad=skip), or use model.chat_template=plain",
        ) from error
    return str(text)
