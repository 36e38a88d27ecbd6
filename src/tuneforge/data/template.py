"""Chat templates: those that are known by name, and which one a run uses."""

from dataclasses import dataclass
from pathlib import Path

from jinja2.exceptions import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from tuneforge.data.rendering import ROW_CODES, apply_template
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
MAX_TEMPLATE = 1 << 20
"""Bytes of a template's file; the longest in use are 20 thousand."""
NAMED = {"plain": PLAIN, "chatml": CHATML}


@dataclass(frozen=True, slots=True)
class Rendered:
    """One document's text and the spans of it that the loss is taken on."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Half-open character ranges."""
    origin: str
    cuts: tuple[int, ...] = ()
    """Places in the text that no token may cross."""


def choose_template(tokenizer: PreTrainedTokenizerBase, wanted: str) -> str:
    """Give the tokenizer its chat template (it is saved with the adapter); returns the line that says which.

    Raises:
        TuneforgeError: an unknown name, an unreadable or broken file, or ChatML without its tokens.
    """
    chosen = _chosen(tokenizer, wanted)
    try:
        apply_template(tokenizer, [{"role": "user", "content": "Hi"}], "a question alone")
    except TuneforgeError as error:
        if isinstance(error.__cause__, TemplateSyntaxError):
            raise TuneforgeError(
                "broken-template",
                f"{chosen}: line {error.__cause__.lineno}: {error.__cause__.message}",
                path="model.chat_template",
                fix="correct this line of the template, or use model.chat_template=plain",
            ) from error
        # It may refuse such a chat: each row is rendered, and reported, by itself.
        if error.problems[0].code not in ROW_CODES:
            raise
    return chosen


def _chosen(tokenizer: PreTrainedTokenizerBase, wanted: str) -> str:
    own = tokenizer.chat_template
    if wanted == "auto":
        if isinstance(own, dict) and "default" not in own:
            raise TuneforgeError(
                "no-default-template",
                f"the tokenizer has the chat templates {', '.join(map(repr, own)) or 'none'} and none named 'default'",
                path="model.chat_template",
                fix=f"choose one: model.chat_template={next(iter(own), 'plain')}, or plain",
            )
        if own:
            return "chat template: the tokenizer's own"
        tokenizer.chat_template = PLAIN
        return "chat template: plain, ending answers in EOS (the tokenizer has none)"
    if isinstance(own, dict) and wanted in own:
        tokenizer.chat_template = own[wanted]
        return f"chat template: {wanted}, of the tokenizer's own"
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
    file = _file(wanted, own)
    try:
        tokenizer.chat_template = _text(file)
    except (OSError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        raise TuneforgeError(
            "broken-template",
            f"{file} cannot be read as UTF-8 text: {error}",
            path="model.chat_template",
            fix="save the template as UTF-8 in a file that you may read",
        ) from error
    return f"chat template: {file}"


def _text(file: Path) -> str:
    with file.open("rb") as opened:
        raw = opened.read(MAX_TEMPLATE + 1)
    if len(raw) > MAX_TEMPLATE:
        raise ValueError(f"it is larger than {MAX_TEMPLATE:,} bytes")
    return raw.decode("utf-8")


def _file(wanted: str, own: object) -> Path:
    """The file of a template, by its path or as PACKAGE:FILE."""
    package, colon, name = wanted.partition(":")
    shipped = registry.package_dir(package) if colon else None
    file = shipped / name if shipped else Path(wanted)
    # A plugin's name stands for its own files, and for no others of this machine.
    outside = shipped is not None and not file.resolve().is_relative_to(shipped.resolve())
    if outside or not file.is_file():
        names = ["auto", *NAMED, *(own if isinstance(own, dict) else ())]
        raise TuneforgeError(
            "unknown-template",
            f"{wanted!r} is neither a name nor a file",
            path="model.chat_template",
            fix=did_you_mean(wanted, names) + ", or the path of a Jinja file, or PACKAGE:FILE of a plugin",
        )
    return file
