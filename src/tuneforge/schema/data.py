"""Where rows come from and how they become batches."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from tuneforge.schema.types import Count, LocalPath, Pluggable, PositiveInt, Probability, Range


@dataclass(frozen=True, kw_only=True)
class Split:
    """How rows are divided into train and eval."""

    by: Literal["auto", "source", "group", "row"] = "auto"
    """source: as the source marks its rows; group: by module, document or conversation; row: by content."""
    eval_fraction: Probability = 0.1
    """Share of rows held out; ignored where `eval_path` is given or the source marks its rows."""
    eval_path: LocalPath | None = None
    """A file whose rows are the eval split."""
    max_eval_rows: Count = 500
    """At most this many rows are evaluated (0: all). 500-1000 is the field's usual fixed subset."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """General rows among the train rows, against forgetting (arXiv 1811.11682; the guides mix in 10 to 30 %)."""

    fraction: Probability = 0.0
    """Share of the train rows that are general ones; 0: none."""
    path: LocalPath = "bundled"
    """A file of general rows of any format; bundled: the standard library's documentation as text."""


@dataclass(frozen=True, kw_only=True)
class ScoredRows(Pluggable):
    """Rows that a model is scored on; those of another source than a file by its `_target_`."""

    group: ClassVar[str] = "data"
    needs_target: ClassVar[bool] = False

    path: LocalPath | None = None
    """File, folder or glob."""
    metric: Literal["acc", "acc_norm"] = "acc_norm"
    """Of rows with choices: the likeliest choice, as a whole (acc) or by character (acc_norm), as lm-eval has them."""
    rows: Count = 128
    """At most this many rows, picked by seed (0: all)."""


@dataclass(frozen=True, kw_only=True)
class Data(Pluggable):
    """A source of rows and their way into batches."""

    group: ClassVar[str] = "data"

    path: LocalPath | None = None
    """File, folder or glob, for sources that read one."""
    encoding: str = "utf-8"
    """Encoding of text files, by Python's name: utf-8, cp1252, gb18030, utf-16 and others. Text that it visibly reads
    wrongly is refused, with the encodings that are likely."""
    format: Literal["auto", "alpaca", "chat", "prompt_completion", "text", "classification"] | str = "auto"
    """auto: recognised from the columns, but for classification: raw text may have labels too. A plugin's own: the
    dotted path of a function from a row to an example."""
    columns: dict[str, str | None] = field(default_factory=dict)
    """Names of your columns, for rows that have other names: `data.columns.instruction=question`. null: the column of
    this name is left unread, and counted as metadata."""
    labels: list[str] | None = None
    """Classes in the order of their ids, for classification. null: those of the train rows, sorted."""
    on_bad: Literal["error", "skip"] = "error"
    """A row that does not fit the format stops the run, or is left out and counted."""
    max_length: Literal["auto"] | PositiveInt = "auto"
    """Tokens in a row. auto: the model's positions, at most 1024; longer than the positions is an error."""
    overlong: Literal["truncate", "drop", "chunk"] = "truncate"
    """What happens to a document longer than a row (chunk: cut into rows, for raw text); the count is printed."""
    packing: bool = True
    """Several documents share a row, best fit, with restarting positions: exact and free of padding."""
    train_on: Literal["assistant", "all"] = "assistant"
    """assistant: loss on answers only, end-of-turn token included; all: on every token of the document."""
    special_tokens_in_text: Literal["warn", "escape", "refuse"] = "warn"
    """What happens to a row whose text names a special token, such as `<|im_end|>` in a question. warn: it becomes that
    token; escape: it is encoded as plain text; refuse: it is a bad row (`on_bad`)."""
    max_turn_documents: PositiveInt = 16
    """Documents made of one conversation at most, where the chat template writes earlier turns differently and each
    answer is a document with its own history. Of more answers, these are taken evenly."""
    split: Split = field(default_factory=Split)
    """How train and eval are divided."""
    replay: Replay = field(default_factory=Replay)
    """General rows mixed into the train rows."""
    max_rows: Count = 0
    """Use at most this many rows of each split, picked by seed (0: all)."""
    shuffle_answers: bool = False
    """Control run: train answers are dealt to other prompts, so that only the format can be learnt."""
    num_workers: Annotated[int, Range(ge=0, le=1024)] = 0
    """Processes that collate batches. Rows are tokenised up front, so 0 is fast enough for most runs."""
