"""Rows that a model is scored on: text that it should find likely, and questions whose answer it should choose.

A text's score is the likelihood of a token, exp of the mean log-likelihood: 1 / perplexity. A log-likelihood itself has
no "5 % below", for 5 % of -3 are six times those of -0.5; of a likelihood 5 % are 0.051 nats a token, whatever it is.
A question's choice is the one with the highest log-likelihood, summed (`acc`) or by character (`acc_norm`), as in
lm-evaluation-harness (arXiv 2405.14782, section 4.2.1), and the score is the share of right ones.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from tuneforge.data.encode import Document, encode, tokenise
from tuneforge.data.formats import RowError
from tuneforge.data.known import known
from tuneforge.data.reading import KEY, about, read_examples
from tuneforge.data.rows import Row, first_few, kind_of
from tuneforge.data.source import read_rows, sample
from tuneforge.data.template import Rendered
from tuneforge.errors import TuneforgeError
from tuneforge.schema.data import ScoredRows

Numbers = npt.NDArray[np.float64]
Metric = Literal["likelihood", "acc", "acc_norm"]
FILE = "tuneforge.data.file.file"

ERRORS_OF_NOISE = 3.0
"""Standard errors that a fall must exceed: about one false alarm in forty looks."""


@dataclass(frozen=True)
class Fall:
    """Scores of one task, before and now."""

    base: float
    now: float
    noise: float
    """`ERRORS_OF_NOISE` standard errors of the change over the task's rows, as a share of the base's score."""

    @property
    def share(self) -> float:
        """How far below the base's score it is, as a share of that; negative where it rose."""
        return 1 - self.now / self.base if self.base else 0.0

    def beyond(self, tolerance: float) -> bool:
        """Whether that is more than the tolerance, and more than chance."""
        return self.share > max(tolerance, self.noise)


@dataclass(frozen=True)
class ScoredTask:
    """Documents that make one score."""

    name: str
    metric: Metric
    documents: list[Document]
    questions: list[tuple[int, int, int]] = field(default_factory=list)
    """Of each question, its first document, the one behind its last, and the one that is right."""
    characters: list[int] = field(default_factory=list)
    """Of each document's choice."""
    digest: str = ""
    """Of its rows: scores of other rows do not compare."""

    @property
    def num_items(self) -> int:
        """Texts, or questions."""
        return len(self.questions) or len(self.documents)

    def items(self, sums: Numbers) -> Numbers:
        """What counts of each text (its log-likelihood) or question (1 where the choice is right); shape [items].

        Args:
            sums: each document's summed log-likelihood, [documents].
        """
        if not self.questions:
            return sums
        by = sums / np.maximum(1, self.characters) if self.metric == "acc_norm" else sums
        return np.asarray([first + by[first:end].argmax() == right for first, end, right in self.questions], np.float64)

    def score(self, items: Numbers) -> float:
        """Between 0 and 1, more is better."""
        return float(items.mean()) if self.questions else math.exp(items.sum() / self._tokens.sum())

    def compare(self, base: Numbers, now: Numbers) -> Fall:
        """Two states of a model on the same items, pair by pair."""
        scores = self.score(base), self.score(now)
        change = now - base
        weights = np.ones_like(change) if self.questions else self._tokens
        mean = change.sum() / weights.sum()
        error = math.sqrt(((change - mean * weights) ** 2).sum()) / weights.sum()
        # The likelihood's own relative change is, to first order, the change of the log-likelihood a token.
        relative = error / max(scores[0], 1e-12) if self.questions else error
        return Fall(*scores, noise=ERRORS_OF_NOISE * relative)

    @property
    def _tokens(self) -> Numbers:
        return np.asarray([d.num_labels for d in self.documents], np.float64)


def read_tasks(
    given: Mapping[str, str | Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int,
    path: str,
) -> list[ScoredTask]:
    """Task after task, read and tokenised; where none is given, what the bundled model knows.

    Args:
        given: name -> a file, or a node with the options of `ScoredRows` and of its `_target_`.
        tokenizer: of the model that is scored.
        max_length: tokens of a row at most.
        seed: picks rows where there are more than the task takes.
        path: config path of `given`, which errors name.

    Raises:
        TuneforgeError: rows that cannot be used.
    """
    default = {f.name: f.default for f in dataclasses.fields(ScoredRows)}
    nodes = {n: {**default, **({"path": g} if isinstance(g, str) else g)} for n, g in given.items()}
    tasks = []
    for name in nodes or known():
        node = nodes.get(name, default)
        options: Any = {"metric": node["metric"], "at_most": node["rows"], "max_length": max_length, "seed": seed}
        source = {"_target_": FILE, **{k: v for k, v in node.items() if k not in ("metric", "rows")}}
        where = f"{path}.{name}"
        try:
            with about(where, fixed=True):
                rows = read_rows(source) if nodes else known()[name]
                tasks.append(scored_task(name, rows, tokenizer, key=where, **options))
        except TuneforgeError as error:
            raise TuneforgeError.of([dataclasses.replace(p, path=where) for p in error.problems]) from error
    return tasks


def scored_task(
    name: str,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    metric: Literal["acc", "acc_norm"],
    at_most: int,
    max_length: int,
    seed: int,
    key: str = KEY,
) -> ScoredTask:
    """Tokenise a task's rows: `choices` makes them questions, else any format that can be trained on is text.

    Raises:
        TuneforgeError: rows that are neither, or that do not fit; its path is that of the data.
    """
    chosen = sample(list(rows), at_most, seed)
    digest = hashlib.sha256(repr([dataclasses.astuple(row) for row in chosen]).encode()).hexdigest()
    if any("choices" in row.fields for row in chosen[:1]):
        return _questions(name, chosen, tokenizer, metric=metric, max_length=max_length, digest=digest)
    examples = read_examples(chosen, key=key).examples
    encoded = encode(examples, tokenizer, train_on="assistant", max_length=max_length, overlong="truncate")
    return ScoredTask(name, "likelihood", encoded.documents, digest=digest)


def _questions(
    name: str, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, *, metric: Metric, max_length: int, digest: str
) -> ScoredTask:
    rendered: list[Rendered] = []
    questions: list[tuple[int, int, int]] = []
    characters: list[int] = []
    bad: list[str] = []
    for row in rows:
        try:
            question, choices, right = _question(row.fields)
        except RowError as reason:
            bad.append(f"{row.origin}: {reason}")
            continue
        first = len(rendered)
        questions.append((first, first + len(choices), first + right))
        characters += [len(choice.strip()) for choice in choices]
        rendered += _rendered(question, choices, row.origin)
    if bad:
        message = f"{len(bad)} of {len(rows)} rows are no questions with choices:{first_few(bad, 5)}"
        raise TuneforgeError("bad-rows", message, path="data.path", fix="correct these rows")
    documents = [_cut(document, max_length) for document in tokenise(rendered, tokenizer)]
    return ScoredTask(name, metric, documents, questions, characters, digest)


def _question(fields: Mapping[str, Any]) -> tuple[str, list[str], int]:
    """Question, choices and the place of the right one."""
    question = fields.get("question", fields.get("prompt"))
    choices, answer = fields["choices"], fields.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise RowError("has no text in 'question'")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise RowError("'choices' is no list of two texts or more")
    if isinstance(answer, str) and choices.count(answer) == 1:
        return question, choices, choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        shown = kind_of(answer) if not isinstance(answer, int | str) else repr(answer)
        raise RowError(f"'answer' is {shown}: neither one of the choices nor its number, from 0")
    return question, choices, answer


def _rendered(question: str, choices: Sequence[str], origin: str) -> Iterator[Rendered]:
    """Question and choice with one space between them, where neither has any of its own."""
    for choice in choices:
        gap = "" if question[-1].isspace() or choice[0].isspace() else " "
        text = f"{question}{gap}{choice}"
        yield Rendered(text, ((len(question), len(text)),), origin)


def _cut(document: Document, max_length: int) -> Document:
    """The last tokens: of a long question its beginning is left out, never its answer."""
    return Document(document.input_ids[-max_length:], document.labels[-max_length:], document.origin)
