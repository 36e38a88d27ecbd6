"""A chat template applied to messages, with every failure reported as an error of the template or of the row."""

import datetime
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from tuneforge.bounded import OverBoundsError, bounded
from tuneforge.compat import give_template_clock
from tuneforge.errors import TuneforgeError

ROW_CODES = ("template-refuses-row", "template-splits-wrongly", "special-tokens-in-text")
"""Errors about one row: `data.on_bad=skip` leaves such a row out and counts it."""
MAX_WRITTEN, MAX_SHARE = 1_000_000, 20
"""Characters that a template may write for a conversation, and beside them for each character of it."""


_day = datetime.datetime.now(datetime.UTC)


def set_day(day: datetime.datetime) -> None:
    """Set the day that templates write as today: that on which the run started, so that a resumed one sees the same."""
    global _day  # noqa: PLW0603  templates have it as a global function too
    _day = day


def _strftime_now(form: str) -> str:
    return _day.strftime(form)


def written_day(tokenizer: PreTrainedTokenizerBase) -> datetime.datetime | None:
    """The day that the template writes as today; None where it writes none."""
    return _day if "strftime_now" in str(tokenizer.chat_template) else None


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
        TuneforgeError: the template refuses the messages, fails on them, or takes too long.
    """
    try:
        return _within_bounds(tokenizer, messages, origin, generate)
    except TuneforgeError:
        raise
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


def _within_bounds(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], origin: str, generate: bool = False
) -> str:
    """The messages as the template writes them. It may come with a model: it is a program, and not ours.

    Raises:
        TuneforgeError: it takes too long or too much memory, or writes too much.
        Exception: whatever the template raises.
    """
    try:
        with bounded():
            # A batch of one: transformers refuses an empty conversation otherwise.
            if written_day(tokenizer):
                give_template_clock(tokenizer.get_chat_template(), _strftime_now)
            batch = tokenizer.apply_chat_template([list(messages)], tokenize=False, add_generation_prompt=generate)
        text = str(batch[0])
        most = MAX_WRITTEN + MAX_SHARE * sum(len(str(m)) for m in messages)
        if len(text) > most:
            raise OverBoundsError(f"wrote {len(text):,} characters, where {most:,} are allowed")
        return text
    except OverBoundsError as error:
        start = " ".join(str(tokenizer.chat_template).split())[:80]
        raise TuneforgeError(
            "template-over-bounds",
            f"the chat template {error} for {origin}; it starts with: {start}",
            path="model.chat_template",
            fix="use model.chat_template=plain, or a template that you have read",
        ) from error
