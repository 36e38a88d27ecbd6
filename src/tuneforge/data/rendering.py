"""A chat template applied to messages, with every failure reported as an error of the template or of the row."""

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from tuneforge import bounded
from tuneforge.bounded import OverBoundsError
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


MOST_SECONDS = 10.0
"""Of the processor, after which a template must not take long for each conversation."""
SLOW_SHARE = 8
"""It takes long where the mean is more than this part of the time that one rendering may take."""


@dataclass
class _Spent:
    """What the template in use has taken so far: one just within its bound would take days for a data set."""

    template: Any = None
    seconds: float = 0.0
    times: int = 0

    def charge(self, template: Any, seconds: float) -> None:
        """Count one rendering.

        Raises:
            OverBoundsError: all of them take too long.
        """
        if template != self.template:
            self.template, self.seconds, self.times = template, 0.0, 0
        self.seconds += seconds
        self.times += 1
        if self.seconds > MOST_SECONDS and self.seconds / self.times > bounded.SECONDS / SLOW_SHARE:
            raise OverBoundsError(f"took {self.seconds:.0f} seconds of the processor for {self.times} conversations")


_spent = _Spent()


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
        started = time.process_time()
        with bounded.bounded():
            # A batch of one: transformers refuses an empty conversation otherwise.
            if written_day(tokenizer):
                give_template_clock(tokenizer.get_chat_template(), _strftime_now)
            batch = tokenizer.apply_chat_template([list(messages)], tokenize=False, add_generation_prompt=generate)
        text = str(batch[0])
        most = MAX_WRITTEN + MAX_SHARE * sum(len(str(m)) for m in messages)
        if len(text) > most:
            raise OverBoundsError(f"wrote {len(text):,} characters, where {most:,} are allowed")
        _spent.charge(tokenizer.chat_template, time.process_time() - started)
        return text
    except OverBoundsError as error:
        start = " ".join(str(tokenizer.chat_template).split())[:80]
        raise TuneforgeError(
            "template-over-bounds",
            f"the chat template {error} for {origin}; it starts with: {start}",
            path="model.chat_template",
            fix="use model.chat_template=plain, or a template that you have read",
        ) from error
