"""What the metric counts as right, and what a statement cannot do."""

import time

import pytest

from tuneforge_sql.execution import can_judge, run, same_answer

SCHEMA = """\
create table books (id integer primary key, title text not null, year integer, price real, added date, author_id int);
create table authors (id integer, name varchar(20) unique, country text);"""
WANTED = "select title from books where year > 1990"


@pytest.mark.parametrize(
    ("wanted", "sql"),
    [
        (WANTED, WANTED),
        (WANTED, "SELECT b.title FROM books AS b WHERE NOT b.year <= 1990;"),
        (WANTED, "with late as (select * from books where year >= 1991) select title from late order by title"),
        ("select count(*) from authors where country = 'spain'", "select sum(country = 'spain') from authors"),
        ("select avg(price) from books", "select sum(price) / count(price) from books"),
        (
            "select title, name from books join authors on author_id = authors.id",
            "select title, name from authors, books where books.author_id = authors.id",
        ),
        ("select year from books order by year", "select year from books order by year asc"),
    ],
)
def test_what_answers_alike_is_right(wanted, sql):
    assert can_judge(SCHEMA, wanted)
    assert same_answer(SCHEMA, wanted, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "select title from books",
        "select title from books where year >= 1990",
        "select title from books where year < 1990",
        "select id from books where year > 1990",
        "select title, year from books where year > 1990",
        "select distinct title from books where year > 1990",
        "select heading from books",
        f"{WANTED}; {WANTED}",
        f"{WANTED}\0",
        "\ud800",
        "",
        "Contents _get_string: Return a list",
    ],
)
def test_what_answers_otherwise_is_wrong(sql):
    assert not same_answer(SCHEMA, WANTED, sql)


def test_order_counts_where_the_wanted_statement_sorts():
    wanted = "select year from books order by year desc"
    assert not same_answer(SCHEMA, wanted, "select year from books order by year")
    assert not same_answer(SCHEMA, wanted, "select year from books")


ENDLESS = [
    "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n",
    "with recursive n(i) as (select 'x' union all select i || i from n) select i from n",
    "select count(*) from books a, books b, books c, books d, books e, books f",
]


@pytest.mark.parametrize("sql", ENDLESS)
def test_what_does_not_end_is_cut_off(sql):
    started = time.perf_counter()
    assert run(SCHEMA, sql, WANTED, 0) is None
    # Some 0.05 s; a machine under load gets forty times that.
    assert time.perf_counter() - started < 2


def test_a_result_of_many_rows_is_no_answer():
    many = "with recursive n(i) as (select 1 union all select i + 1 from n where i < {}) select i from n"
    assert len(run(SCHEMA, many.format(1000), WANTED, 0)) == 1000
    assert run(SCHEMA, many.format(1001), WANTED, 0) is None


REFUSED = [
    "attach database 'FILE' as other",
    "vacuum into 'FILE'",
    "drop table books",
    "delete from books",
    "update books set year = 1",
    "insert into books (title) values ('x')",
    "create table more (a)",
    "create temp table more (a)",
    "alter table books rename to livros",
    "begin",
    "pragma query_only = off",
    "select * from pragma_table_info('books')",
    "select load_extension('FILE')",
    "select random()",
    "select zeroblob(1000000000)",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_a_statement_can_read_and_nothing_else(sql, tmp_path):
    assert run(SCHEMA, "select count(*) from books", WANTED, 0) == [(20,)]
    assert run(SCHEMA, sql.replace("FILE", str(tmp_path / "file")), WANTED, 0) is None
    assert list(tmp_path.iterdir()) == []


def test_a_schema_cannot_touch_files_either(tmp_path):
    for sql in REFUSED[:2]:
        assert run(f"{SCHEMA}\n{sql.replace('FILE', str(tmp_path / 'file'))};", WANTED, WANTED, 0) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wanted", ["select nothing from books", "select title from books where year > 1990 and year < 0"]
)
def test_what_fails_or_finds_nothing_judges_nothing(wanted):
    assert not can_judge(SCHEMA, wanted)
