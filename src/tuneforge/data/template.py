"""From an example to text, with the character spans that are supervised."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from tuneforge.data.formats import Example
from tuneforge.errors import TuneforgeError, did_you_mean
from tuneforge.plugins import registry

# A plain template for tokenizers without one. Every answer ends in EOS, or the tuned model would never stop.
PLAIN = (
    "{{ bos_token or '' }}{% for m in messages %}"
    "### {{ m['role'] | capitalize }}\n{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n\n"
    "{% endfor %}{% if add_generation_prompt %}### Assistant\n{% endif %}"
)
# OpenAI's ChatML layout, as used by Qwen and many others.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMED = {"plain": PLAIN, "chatml": CHATML}


@dataclass(frozen=True, slots=True)
class Rendered:
    """One document's text and the spans of it that the loss is taken on."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Half-open character ranges."""
    origin: str


def choose_template(tokenizer: PreTrainedTokenizerBase, wanted: str) -> str:
    """Give the tokenizer its chat template (it is saved with the adapter); returns the line that says which.

    Raises:
        TuneforgeError: an unknown name, an unreadable file, or ChatML without its tokens.
    """
    if wanted == "auto":
        if tokenizer.chat_template:
            return "chat template: the tokenizer's own"
        tokenizer.chat_template = PLAIN
        return "chat template: plain, ending answers in EOS (the tokenizer has none)"
    if wanted in NAMED:
        if wanted == "chatml" and "<|im_end|>" not in tokenizer.get_vocab():
            raise TuneforgeError(
                "no-template-token",
                "chatml needs the token <|im_end|>, and this tokenizer does not have it",
                path="model.chat_template",
                fix="use model.chat_template=plain",
            )
        tokenizer.chat_template = NAMED[wanted]
        return f"chat template: {wanted}"
    package, colon, name = wanted.partition(":")
    shipped = registry.package_dir(package) if colon else None
    file = shipped / name if shipped else Path(wanted)
    if not file.is_file():
        raise TuneforgeError(
            "unknown-template",
            f"{wanted!r} is neither a name nor a file",
            path="model.chat_template",
            fix=did_you_mean(wanted, ["auto", *NAMED]) + ", or the path of a Jinja file, or PACKAGE:FILE of a plugin",
        )
    tokenizer.chat_template = file.read_text(encoding="utf-8")
    return f"chat template: {file}"


def render(example: Example, tokenizer: PreTrainedTokenizerBase, train_on: str) -> list[Rendered]:
    """The documents of an example: one, or one a turn where the template shows earlier turns differently."""
    eos = str(tokenizer.eos_token or "")
    if example.messages:
        return _render_chat(example, tokenizer, train_on)
    if example.completion:
        text = example.prompt + example.completion + eos
        start = len(example.prompt) if train_on == "assistant" else 0
        return [Rendered(text, ((start, len(text)),), example.origin)]
    text = example.text + eos
    return [Rendered(text, ((0, len(text)),), example.origin)]


def _render_chat(example: Example, tokenizer: PreTrainedTokenizerBase, train_on: str) -> list[Rendered]:
    messages: list[dict[str, Any]] = [dict(m) for m in example.messages]
    whole = _apply(tokenizer, messages, example.origin)
    if train_on == "all":
        return [Rendered(whole, ((0, len(whole)),), example.origin)]
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    spans = []
    for i in turns:
        span = _span(tokenizer, messages, i, example.origin)
        upto = span[0]
        # Some templates (those that drop earlier reasoning) write an old turn differently from a new one: then each
        # turn becomes a document with the history it will really be generated after.
        if not whole.startswith(upto):
            return [_turn(tokenizer, messages, j, example.origin) for j in turns]
        spans.append(span[1])
    return [Rendered(whole, tuple(spans), example.origin)]


def _turn(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], i: int, origin: str) -> Rendered:
    text, span = _span(tokenizer, messages, i, origin)
    return Rendered(text, (span,), origin)


def _span(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], i: int, origin: str
) -> tuple[str, tuple[int, int]]:
    """The conversation up to and with turn `i`, and the span of that turn: content and end-of-turn token."""
    prefix = _apply(tokenizer, messages[:i], origin, generate=True)
    upto = _apply(tokenizer, messages[: i + 1], origin)
    if not upto.startswith(prefix):
        raise TuneforgeError(
            "template-splits-wrongly",
            f"the chat template does not write the answer of {origin} after its own generation prompt, "
            "so answer and prompt cannot be told apart",
            path="model.chat_template",
            fix="use another template (model.chat_template=plain or a Jinja file), or data.train_on=all",
        )
    # What follows the end-of-turn token (a newline, usually) belongs to the layout, not to the answer.
    return upto, (len(prefix), len(upto.rstrip()))


def _apply(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], origin: str, generate: bool = False
) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generate))
    except TemplateError as error:
        roles = ", ".join(str(m["role"]) for m in messages)
        raise TuneforgeError(
            "template-refuses-row",
            f"the chat template refuses {origin} (roles: {roles}): {error}",
            path="model.chat_template",
            fix="change the rows (many templates take no system role and want user and assistant in turn), "
            "or use model.chat_template=plain",
        ) from error
