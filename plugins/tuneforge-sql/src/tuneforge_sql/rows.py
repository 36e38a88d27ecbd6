"""`data=sql_questions`: questions about the databases of `schemas`, with the SQL that answers each."""
# ruff: noqa: S608  the SQL is made of our own words, and is the point

import random
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest

from tuneforge.data.rows import Row
from tuneforge.schema.types import Count, PositiveInt
from tuneforge_sql.schemas import SCHEMAS, Schema

Pair = tuple[str, str]
"""A question and its SQL."""


def sql_questions(*, count: PositiveInt = 100, seed: Count = 0) -> list[Row]:
    """Rows with the columns schema, question and sql, in a fixed order.

    Args:
        count: questions about each database, or as many as there are.
        seed: which of them, and in which words.
    """
    return [row for schema in SCHEMAS for row in _rows(schema, count, seed)]


def _rows(schema: Schema, count: int, seed: int) -> Iterator[Row]:
    # A generator of each database's own: what one of them holds cannot change the questions about another.
    rng = random.Random(f"{seed}:{schema.name}")  # noqa: S311  no secret
    kinds = [list(kind(schema, rng)) for kind in KINDS]
    for pairs in kinds:
        rng.shuffle(pairs)
    # In turns, or the kinds with many possible questions would crowd out the others.
    in_turns = [pair for pair in chain.from_iterable(zip_longest(*kinds)) if pair is not None]
    for number, (question, sql) in enumerate(in_turns[:count], 1):
        fields = {"schema": schema.sql, "question": question, "sql": sql}
        yield Row(fields, origin=f"{schema.name}:{number}", group=schema.name, held_out=schema.held_out)


# One function for each kind of question. Values stand in quotes in the question as they do in SQL.


def _select(schema: Schema, rng: random.Random) -> Iterator[Pair]:
    for table in (schema.things, schema.owners):
        for column in (table.label, *table.words, *table.numbers):
            ask = rng.choice(("List the {} of all {}.", "Show the {} of the {}.", "What is the {} of all {}?"))
            yield ask.format(column, table.name), f"select {column} from {table.name}"


def _where_word(schema: Schema, rng: random.Random) -> Iterator[Pair]:
    for table in (schema.things, schema.owners):
        for column, words in table.words.items():
            for word in words:
                ask = rng.choice(("List the {} of {} with {} '{}'.", "Show the {} of {} whose {} is '{}'."))
                sql = f"select {table.label} from {table.name} where {column} = '{word}'"
                yield ask.format(table.label, table.name, column, word), sql


def _where_number(schema: Schema, rng: random.Random) -> Iterator[Pair]:
    for table in (schema.things, schema.owners):
        for column, numbers in table.numbers.items():
            for number in numbers:
                above = rng.random() < 0.5
                ask = rng.choice(("List the {} of {} with {} {} {}.", "Show the {} of {} whose {} is {} {}."))
                question = ask.format(table.label, table.name, column, "above" if above else "below", number)
                sign = ">" if above else "<"
                yield question, f"select {table.label} from {table.name} where {column} {sign} {number}"


def _count(schema: Schema, rng: random.Random) -> Iterator[Pair]:
    for table in (schema.things, schema.owners):
        yield f"How many {table.name} are there?", f"select count(*) from {table.name}"
        for column, words in table.words.items():
            for word in words:
                ask = rng.choice(("How many {} have {} '{}'?", "Count the {} whose {} is '{}'."))
                yield (
                    ask.format(table.name, column, word),
                    f"select count(*) from {table.name} where {column} = '{word}'",
                )


def _aggregate(schema: Schema, rng: random.Random) -> Iterator[Pair]:
    for table in (schema.things, schema.owners):
        for column in table.numbers:
            for word, function in (("average", "avg"), ("total", "sum"), ("highest", "max"), ("lowest", "min")):
                ask = rng.choice(("What is the {} {} of the {}?", "Show the {} {} of all {}."))
                yield ask.format(word, column, table.name), f"select {function}({column}) from {table.name}"


def _group_by(schema: Schema, rng: random.Random) -> Iterator[Pair]:
    for table in (schema.things, schema.owners):
        for column in table.words:
            ask = rng.choice(("How many {} are there for each {}?", "Count the {} by {}."))
            yield ask.format(table.name, column), f"select {column}, count(*) from {table.name} group by {column}"
            for number in table.numbers:
                ask = rng.choice(("What is the average {} of the {} for each {}?", "Show the average {} of {} by {}."))
                sql = f"select {column}, avg({number}) from {table.name} group by {column}"
                yield ask.format(number, table.name, column), sql


def _order_by(schema: Schema, rng: random.Random) -> Iterator[Pair]:
    for table in (schema.things, schema.owners):
        for column in table.numbers:
            for limit in (1, 2, 3, 5):
                first, direction = rng.choice((("highest", " desc"), ("lowest", "")))
                question = f"List the {table.label} of the {limit} {table.name} with the {first} {column}."
                sql = f"select {table.label} from {table.name} order by {column}{direction} limit {limit}"
                yield question, sql


def _join(schema: Schema, rng: random.Random) -> Iterator[Pair]:
    things, owners = schema.things, schema.owners
    join = f"from {things.name} join {owners.name} on {owners.key} = {owners.name}.id"
    for column in (things.label, *things.words, *things.numbers):
        for other in (owners.label, *owners.words, *owners.numbers):
            ask = rng.choice(("Show the {} of the {} and the {} of their {}.", "List {} of {} with {} of the {}."))
            yield ask.format(column, things.name, other, owners.name), f"select {column}, {other} {join}"
    for column, words in owners.words.items():
        for word in words:
            ask = rng.choice(("List the {} of {} of {} with {} '{}'.", "Show the {} of {} of {} whose {} is '{}'."))
            question = ask.format(things.label, things.name, owners.name, column, word)
            yield question, f"select {things.label} {join} where {column} = '{word}'"


KINDS: tuple[Callable[[Schema, random.Random], Iterator[Pair]], ...] = (
    _select,
    _where_word,
    _where_number,
    _count,
    _aggregate,
    _group_by,
    _order_by,
    _join,
)
