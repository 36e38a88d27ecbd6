"""Chat templates of many kinds, conversations, and what of them is supervised."""

from typing import Any

from helpers import make_tokenizer
from tuneforge.data.encode import IGNORE
from tuneforge.data.formats import Example
from tuneforge.data.template import CHATML, PLAIN

OPTIONS: dict[str, Any] = {"train_on": "assistant", "max_length": 100_000, "overlong": "truncate"}

HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|h|>{{ m['role'] }}<|/h|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}"
)
TRIMMED_TURNS = (
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<start>{{ role }}\n{{ m['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] | trim }}{{ eos_token }}"
    "{% else %}[SYS]{{ m['content'] }}[/SYS]{% endif %}{% endfor %}"
)
EOS_AT_THE_END = (
    "{% for m in messages %}<start>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
NO_PROMPT = (  # a line an answer, no generation prompt and no end-of-turn token
    "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
)
ORDINARY = {
    "plain": (PLAIN, "</s>"),
    "chatml": (CHATML, "<|im_end|>"),
    "headers": (HEADERS, "<|eot|>"),
    "trimmed turns": (TRIMMED_TURNS, "<end>"),
    "brackets": (BRACKETS, "</s>"),
    "eos at the end": (EOS_AT_THE_END, "<end>"),
    "no generation prompt": (NO_PROMPT, ""),
}
# The system prompt is written into the last question: with the answers given, it moves on (or is gone).
SYSTEM_LAST = (
    "{% set found = namespace(system='', last=0) %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set found.system = m['content'] ~ '\n\n' %}{% endif %}"
    "{% if m['role'] == 'user' %}{% set found.last = loop.index0 %}{% endif %}{% endfor %}"
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "[INST] {% if WHERE %}{{ found.system }}{% endif %}{{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
SYSTEM_IN_LAST_TURN = SYSTEM_LAST.replace("WHERE", "loop.last")
SYSTEM_IN_LAST_QUESTION = SYSTEM_LAST.replace("WHERE", "loop.index0 == found.last")
# Reasoning models: earlier reasoning is dropped, and the generation prompt may open the next.
THINKS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}<A>{{ m['content'].split('</think>')[-1] }}"
    "{{ eos_token }}{% elif m['role'] == 'user' %}<U>{{ m['content'] }}{% else %}{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<A>OPEN{% endif %}"
)
THINKS_OPENED = THINKS.replace("OPEN", "<think>\n")
THINKS_UNOPENED = THINKS.replace("OPEN", "")
THINKS_IN_LAST = (
    "{% set found = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set found.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% set parts = m['content'].split('</think>') %}"
    "{% set thought = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' %}"
    "{% if loop.index0 > found.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ parts[-1].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(*turns: str, system: str = "", origin: str = "t:1") -> Example:
    roles = ("user", "assistant")
    first = ({"role": "system", "content": system},) if system else ()
    return Example(
        messages=(*first, *({"role": roles[i % 2], "content": t} for i, t in enumerate(turns))), origin=origin
    )


def tokenizer_with(template: str):
    tokenizer = make_tokenizer("llama")
    tokenizer.add_tokens(["<|eot|>", "<end>", "<A>"])
    tokenizer.chat_template = template
    return tokenizer


def taught(documents, tokenizer) -> list[str]:
    """What the loss is taken on, a text a run of supervised tokens."""
    found = []
    for document in documents:
        on = document.labels != IGNORE
        starts = [i for i in range(len(on)) if on[i] and not (i and on[i - 1])]
        for start in starts:
            end = next((i for i in range(start, len(on)) if not on[i]), len(on))
            found.append(tokenizer.decode(document.input_ids[start:end]))
    return found
