"""Next-token prediction that also runs the SQL it writes: `eval/execution_accuracy`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneforge.context import Context
from tuneforge.errors import TuneforgeError
from tuneforge.generation import generate
from tuneforge.objectives.causal_lm import CausalLM
from tuneforge.schema.types import Count
from tuneforge_sql.execution import can_judge, same_answer
from tuneforge_sql.format import schema_and_sql


@dataclass(frozen=True)
class Question:
    """One eval row whose answer is run."""

    schema: str
    wanted: str
    prompt: NDArray[np.int64]
    """Token ids up to the answer; shape [tokens]."""
    end: int
    """The token that ends the answer."""
    max_new_tokens: int


class TextToSql(CausalLM):
    """The loss is that of its base; evaluations outside of training also generate, which is slow, and execute."""

    def __init__(self, context: Context, /, *, num_executed: Count = 16) -> None:
        """Choose the questions.

        Args:
            context: what the run's parts share.
            num_executed: eval questions whose SQL is generated and run; 0 switches it off.

        Raises:
            TuneforgeError: no eval row can be judged by running SQL.
        """
        super().__init__(context)
        self.questions = choose(context, num_executed) if num_executed else []

    def on_validation_epoch_end(self) -> None:
        """Log the share of questions whose generated SQL gives what the wanted SQL gives."""
        super().on_validation_epoch_end()
        if self.questions and self.trainer.state.fn == "validate":
            # Every process answers every question: the same number everywhere, and sharded weights are gathered by all.
            right = sum(same_answer(q.schema, q.wanted, self._answer(q)) for q in self.questions)
            self.log("eval/execution_accuracy", right / len(self.questions))

    def _answer(self, question: Question) -> str:
        (sql,) = generate(self, [question.prompt], question.max_new_tokens, stop=[question.end])
        return sql


def choose(context: Context, count: int) -> list[Question]:
    """Up to `count` questions, spread evenly over the eval split.

    Raises:
        TuneforgeError: there is none.
    """
    found = _questions(context)
    if not found:
        raise TuneforgeError(
            "nothing-to-execute",
            "no eval row can be judged by running its SQL: that takes a schema and a statement that SQLite runs, "
            "an answer that ends within data.max_length, and data.train_on=assistant",
            path="task_recipe.num_executed",
            fix="correct the rows, or set task_recipe.num_executed=0",
        )
    spread = np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)
    return [found[i] for i in spread]


def _questions(context: Context) -> list[Question]:
    examples = {example.origin: example for example in context.eval_examples if len(example.messages) == 2}
    found = []
    for document in context.eval_rows.documents:
        supervised = np.flatnonzero(document.labels >= 0)
        start, room = int(supervised[0]), context.settled.max_length - len(document.input_ids)
        # No prompt with train_on=all; and a document without room left was cut, so that its end is not the answer's.
        if start == 0 or room == 0 or document.origin not in examples:
            continue
        schema, wanted = schema_and_sql(examples[document.origin])
        if can_judge(schema, wanted):
            # Another way to say the same is rarely twice as long. Within max_length, so within the model's positions.
            budget = min(2 * len(supervised), len(supervised) + room)
            end = int(document.input_ids[supervised[-1]])
            found.append(Question(schema, wanted, document.input_ids[:start], end, budget))
    return found
