"""`data=pydoc`: instruction rows out of the installed standard library, so there is real text on every machine.

Six short tasks over the same documentation. `signature` asks what can be read off a signature and is what a model of a
few million parameters learns best; `parameters` and `default` can be answered by copying from the input; `summarise`,
`name` and `describe_parameter` need to know how names and descriptions go together.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tuneforge.data.rows import Row
from tuneforge.data.stdlib import Symbol, documents, is_held_out, package, symbols
from tuneforge.errors import TuneforgeError, did_you_mean

SIGNATURE = "signature"
SUMMARISE = "summarise"
NAME = "name"
DESCRIBE_PARAMETER = "describe_parameter"
PARAMETERS = "parameters"
DEFAULT = "default"

AT_MOST = {SIGNATURE: 4000, SUMMARISE: 800, NAME: 1000, PARAMETERS: 700, DEFAULT: 600, DESCRIBE_PARAMETER: 300}
"""Rows of each task; the surplus is left out by hash. Long free answers are kept few: a summary has some twenty tokens
that hardly follow from the signature, and a loss per token over many of them says little about what was learnt."""

TEMPLATES = {
    SIGNATURE: (
        "What does this signature say?",
        "Read this signature: kind, visibility, parameters, defaults, stars.",
        "Describe the signature without its names.",
    ),
    SUMMARISE: (
        "Summarise in one sentence what this {kind} does.",
        "What does this Python {kind} do?",
        "Write the first line of the docstring of this {kind}.",
        "Describe this {kind} in one sentence.",
    ),
    NAME: (
        "Which {kind} does this describe? Answer with its name.",
        "Name the {kind} that fits this description.",
        "What is the name of this {kind}?",
    ),
    DESCRIBE_PARAMETER: (
        "What is the parameter `{parameter}` of this {kind}?",
        "Describe the parameter `{parameter}`.",
        "What does `{parameter}` mean here?",
    ),
    PARAMETERS: (
        "List the parameters of this {kind}.",
        "Which parameters does this {kind} take?",
        "Name the parameters of this {kind}, separated by commas.",
    ),
    DEFAULT: (
        "What is the default value of `{parameter}`?",
        "Which default does the parameter `{parameter}` have?",
        "What value does `{parameter}` take when it is not given?",
    ),
}
"""Several wordings a task, so that a model learns the question and not one sentence."""

MAX_TEXT = 200
"""Characters of a description: what fits one line of a help page or two of a terminal."""
MAX_ROW = 600
"""Characters of input and output together; some signatures alone are longer."""

_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|resp|approx|incl|esp|orig|opt|[Nn]o|Fig|Sec|[A-Z]))\.$")
_SENTENCE_END = re.compile(r"[.!?][)\"']?(?=\s|$)")
_LIST_ITEM = re.compile(r"\s*(?:[-*+]\s|\d+[.)]\s|>>>|\.\. |:\w|\||@)")
_PLAIN = re.compile(r"[A-Za-z0-9 ,.;:'\"()\[\]{}/<>=+\-_*%&#!?~$^]+")
_UNFIT_START = re.compile(
    r"(?:todo|xxx|fixme|deprecated|internal|same as|see |ditto|usage|example|note|warning|undocumented|as above|like )"
    r"|[\w.]+\(|[\w-]+ =",
    re.IGNORECASE,
)
_UNFIT = re.compile(
    r"todo\b|fixme|deprecat|<==>|->|==>|>>>|::|\.\.\.|not implemented|\s[,.;:)]|copyright|generated from", re.IGNORECASE
)
_DANGLING = re.compile(
    r"(?:[,:;=(\-]|\b(?:an?|the|and|or|if|of|to|in|on|at|by|as|for|from|with|that|which|is|are|be|has|its?|this|returns?))$",
    re.IGNORECASE,
)
_ENTRY = re.compile(
    r"(\s*)(?:[-*]\s+)?(?::param\s+(?:\w+\s+)?)?"
    r"([*`']{0,2}\w+[*`']{0,2})(?:\s*\([^)]*\))?\s*(?::|\s--?)\s+(\S.*)"
)
"""A parameter in a list: `:param x: text`, `x: text`, `x (int): text`, `x -- text`, `- x -- text`."""
_OPENING = re.compile(
    r"(?:If |When )?(?:[Tt]he )?(?:[Oo]ptional )?(?:argument |parameter )?"
    r"['`\"*]*(\w+)['`\"*]* (?:argument |parameter |flag )?"
    r"(?:is|are|must|should|may|can|specifies|specify|defines|controls|determines|gives|indicates|names|defaults)\b"
)
"""A sentence about a parameter: `*x* is ...`, `'x' must be ...`, `The x argument may ...`, `If x is true, ...`."""


@dataclass(frozen=True, slots=True)
class Question:
    """A row before its wording is chosen."""

    task: str
    symbol: Symbol
    input: str
    output: str
    parameter: str = ""

    @property
    def key(self) -> str:
        """What every choice by hash about this question hangs on."""
        return f"{self.task}:{self.symbol.dotted}:{self.parameter}"

    @property
    def row(self) -> Row:
        """The question in one of its task's wordings, on the side of the split that its module is on."""
        wordings = TEMPLATES[self.task]
        wording = wordings[_digest(self.key) % len(wordings)]
        instruction = wording.format(kind=self.symbol.kind, parameter=self.parameter)
        fields = {"instruction": instruction, "input": self.input, "output": self.output}
        module = self.symbol.module
        return Row(fields, origin=self.symbol.dotted, group=package(module), held_out=is_held_out(module))


def pydoc(*, tasks: list[str] | None = None) -> list[Row]:
    """Instruction rows from the running Python's standard library, in a fixed order.

    Args:
        tasks: Some of signature, summarise, name, describe_parameter, parameters, default; null means all of them.
    """
    wanted = list(TEMPLATES) if tasks is None else tasks
    for task in wanted:
        if task not in TEMPLATES:
            raise TuneforgeError(
                "unknown-task", f"no task {task!r}", path="data.tasks", fix=did_you_mean(task, TEMPLATES)
            )
    if not wanted:
        fix = f"name some of {', '.join(TEMPLATES)}, or leave it null for all"
        raise TuneforgeError("unknown-task", "an empty list leaves no rows", path="data.tasks", fix=fix)
    return [question.row for question in questions() if question.task in wanted]


def pydoc_text() -> list[Row]:
    """The same documentation as raw text, one row a module or topic, for pretraining."""
    sides = [(held_out, text) for held_out in (False, True) for text in documents(held_out)]
    # The first line of a document is its title: `module json.decoder`, or a topic's heading.
    return [Row({"text": text}, origin=text.partition("\n")[0], held_out=held_out) for held_out, text in sides]


@cache
def questions(root: Path | None = None) -> tuple[Question, ...]:
    """The questions that the library below `root` answers, by module and symbol, at most `AT_MOST` of a task."""
    found: dict[tuple[str, str, str], Question] = {}
    for symbol in symbols(root):
        for ask in _ASKS if _is_public(symbol) else (_signature,):
            for question in ask(symbol):
                # The first answer stands: "name the method of MH: ..." must not have two.
                found.setdefault((question.task, question.input, question.parameter), question)
    fit = [q for q in found.values() if q.output.isascii() and q.input.isascii() and _length(q) <= MAX_ROW]
    return tuple(_balanced(fit))


def first_sentence(symbol: Symbol) -> str:
    """The sentence that says what the symbol is, on one line and without markup; "" when there is no good one."""
    for paragraph in re.split(r"\n\s*\n", symbol.doc)[:2]:
        lines = paragraph.splitlines()
        while lines and _is_echo(lines[0], symbol):
            lines = lines[1:]
        if lines:
            own = f"(?:{re.escape(symbol.dotted)}|{re.escape(symbol.name)})"
            text = re.sub(rf"^{own}(?:\(\))?\s*(?:--?|:)\s+", "", _prose(lines))
            sentence = _sentences(text)[0] if text else ""
            return sentence if _is_summary(sentence, symbol) else ""
    return ""


def described_parameters(symbol: Symbol) -> dict[str, str]:
    """Parameter -> what the docstring says about it, one line each, only where the docstring says it plainly."""
    known = {parameter.name.lstrip("*") for parameter in symbol.parameters}
    found: dict[str, str] = {}
    for name, text in [*_listed(symbol.doc), *_told(symbol.doc)]:
        if name in known and name not in found and (clean := _description(text)):
            found[name] = clean
    return found


def _signature(symbol: Symbol) -> Iterator[Question]:
    """What kind it is, who may use it, how many parameters and defaults it has, and whether it takes any others."""
    if symbol.kind not in ("class", "function", "method"):
        return
    special = symbol.name.startswith("__") and symbol.name.endswith("__")
    visibility = "special" if special else "private" if symbol.name.startswith("_") else "public"
    named = [p for p in symbol.parameters if not p.name.startswith("*")]
    defaults = sum(p.default is not None for p in named)
    stars = [p.name[: p.name.count("*")] for p in symbol.parameters if p.name.startswith("*")]
    facts = [symbol.kind, visibility]
    if symbol.kind != "class":
        facts += [_count(len(named), "parameter"), _count(defaults, "default"), " and ".join(stars) or "no stars"]
    yield Question(SIGNATURE, symbol, _header(symbol), ", ".join(facts))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _summarise(symbol: Symbol) -> Iterator[Question]:
    if not _asks_name(symbol) and (sentence := first_sentence(symbol)):
        yield Question(SUMMARISE, symbol, _header(symbol), sentence)


def _name(symbol: Symbol) -> Iterator[Question]:
    if _asks_name(symbol) and (sentence := first_sentence(symbol)):
        owner, _, name = symbol.dotted.rpartition(".")
        kind = "class" if owner != symbol.module else "module"
        yield Question(NAME, symbol, f"{sentence} ({kind} {owner})", name)


def _asks_name(symbol: Symbol) -> bool:
    """One symbol gives either its summary or its name: both would tell the same thing twice."""
    if symbol.kind == "module" or symbol.name.startswith("__"):
        return False
    return _digest(symbol.dotted) % 2 == 0


def _describe_parameter(symbol: Symbol) -> Iterator[Question]:
    header = _constructor(symbol) if symbol.kind == "class" else _header(symbol)
    for name, text in described_parameters(symbol).items():
        yield Question(DESCRIBE_PARAMETER, symbol, header, text, name)


def _parameters(symbol: Symbol) -> Iterator[Question]:
    if symbol.kind in ("function", "method") and symbol.parameters:
        yield Question(PARAMETERS, symbol, _header(symbol), ", ".join(p.name for p in symbol.parameters))


def _default(symbol: Symbol) -> Iterator[Question]:
    if symbol.kind not in ("function", "method"):
        return
    given = [p for p in symbol.parameters if p.default is not None and len(p.default) <= 60]
    choice = [p for p in given if p.default != "None"]
    # Half of all defaults are None: asked about at random, "None" would be the answer to learn.
    if not choice and _digest(symbol.dotted) % 3 == 0:
        choice = given
    if choice:
        asked = choice[_digest(symbol.dotted) % len(choice)]
        yield Question(DEFAULT, symbol, _header(symbol), str(asked.default), asked.name)


_ASKS: tuple[Callable[[Symbol], Iterator[Question]], ...] = (
    _signature,
    _summarise,
    _name,
    _describe_parameter,
    _parameters,
    _default,
)


def _balanced(found: list[Question]) -> Iterator[Question]:
    """At most `AT_MOST` of each task, picked by hash and not by place in the alphabet."""
    kept: set[Question] = set()
    for task, limit in AT_MOST.items():
        kept.update(sorted((q for q in found if q.task == task), key=lambda q: _digest(q.key))[:limit])
    return (question for question in found if question in kept)


def _digest(text: str) -> int:
    # Not hash(): that differs from process to process.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _length(question: Question) -> int:
    return len(question.input) + len(question.output)


def _is_public(symbol: Symbol) -> bool:
    return not any(re.match(r"_(?!_)|__\w*(?<!__)$", part) for part in symbol.qualname.split("."))


def _header(symbol: Symbol) -> str:
    """The signature with the full dotted name in place of the bare one."""
    if symbol.kind == "module":
        return symbol.signature
    return re.sub(r"^((?:async )?def|class) \w+", rf"\1 {symbol.dotted}", symbol.signature)


def _constructor(symbol: Symbol) -> str:
    """A class as its `__init__`, so that the parameter asked about can be seen."""
    shown = [p.name if p.default is None else f"{p.name}={p.default}" for p in symbol.parameters]
    return f"def {symbol.dotted}.__init__({', '.join(['self', *shown])})"


def _is_echo(line: str, symbol: Symbol) -> bool:
    """A line that repeats the name or the call (`isabs(s) -> bool`) and says nothing."""
    text = line.strip().strip("`'\".:")
    if text in (symbol.dotted, symbol.qualname, symbol.name) or not re.search(r"\w", text):
        return True
    return re.fullmatch(r"[\w.]*\(.*\)(?:\s*(?:->|=>|=)\s*.{0,60})?", text) is not None and " is " not in text


def _prose(lines: list[str]) -> str:
    """The lines as one, up to a list, an example or a deeper indent; "" when it is unclear where a sentence ends."""
    indent = len(lines[0]) - len(lines[0].lstrip())
    taken = [lines[0]]
    for line in lines[1:]:
        if _LIST_ITEM.match(line) or len(line) - len(line.lstrip()) > indent:
            break
        if len(taken[-1].strip()) < 68 and line.strip()[:1].isupper() and not re.search(r"[.!?,:;)]$", taken[-1]):
            # A heading without a full stop, or a line that was broken early before a capital: no telling which.
            return ""
        taken.append(line)
    return _plain(" ".join(taken))


def _plain(text: str) -> str:
    """Without reStructuredText and old-style quoting: ``x``, `x`, `x', :class:`x` and *x* become x."""
    text = re.sub(r":[\w:]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`", r"\1", text)
    text = re.sub(r"`{1,2}([^`']+?)(?:`{1,2}|'{1,2})", r"\1", text)
    text = re.sub(r"(?<![\w*])\*{1,2}(\w+)\*{1,2}(?![\w*])", r"\1", text)
    return " ".join(text.split())


def _sentences(text: str) -> list[str]:
    found: list[str] = []
    start = 0
    for end in _SENTENCE_END.finditer(text):
        upto = text[start : end.end()].strip()
        if _ABBREVIATION.search(upto):
            continue
        found.append(upto)
        start = end.end()
    return [*found, text[start:].strip()] if text[start:].strip() else found


def _is_summary(text: str, symbol: Symbol) -> bool:
    if not 20 <= len(text) <= MAX_TEXT or len(text.split()) < 3 or not text[0].isupper():
        return False
    if _UNFIT_START.match(text) or text.lower().rstrip(".") == symbol.name.lower():
        return False
    return _is_whole(text)


def _is_whole(text: str) -> bool:
    """Plain characters, closed brackets and quotes, and no end in the middle of a phrase."""
    if not _PLAIN.fullmatch(text) or _UNFIT.search(text) or _DANGLING.search(text):
        return False
    closed = all(text.count(pair[0]) == text.count(pair[1]) for pair in ("()", "[]", "{}", "<>"))
    return closed and text.count('"') % 2 == 0


def _listed(doc: str) -> Iterator[tuple[str, str]]:
    """Parameter and text of each `_ENTRY`, with the deeper-indented lines below it."""
    lines = doc.splitlines()
    for at, line in enumerate(lines):
        if not (match := _ENTRY.fullmatch(line)):
            continue
        text = [match[3]]
        for below in lines[at + 1 :]:
            if not below.strip() or len(below) - len(below.lstrip()) <= len(match[1]) or _ENTRY.fullmatch(below):
                break
            text.append(below.strip())
        if len(text) > 1 and re.fullmatch(r"[\w\[\]]+", text[0]):
            # `width : int` with the text on the next line: the type alone describes nothing.
            text = text[1:]
        # Wide gaps are columns of a table, not prose.
        if not any(re.search(r"\S {3,}\S", part) for part in text):
            yield match[2].strip("*`'"), " ".join(text)


def _told(doc: str) -> Iterator[tuple[str, str]]:
    """Parameter and sentence wherever a sentence opens with one."""
    for paragraph in re.split(r"\n\s*\n", doc):
        for sentence in _sentences(_prose(paragraph.splitlines())) if paragraph.strip() else []:
            if match := _OPENING.match(sentence):
                yield match[1], sentence


def _description(text: str) -> str:
    """The first sentence of a parameter's text, or all of it when it is no sentence; "" when unfit."""
    plain = _plain(text)
    clean = _sentences(plain)[0] if plain else ""
    if not 10 <= len(clean) <= MAX_TEXT or len(clean.split()) < 3 or not clean[0].isalnum():
        return ""
    return clean if _is_whole(clean) and not _UNFIT_START.match(clean) else ""
