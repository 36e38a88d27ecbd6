"""`data=pydoc`: what is read out of the standard library's source, and the rows made of it."""

import hashlib
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tuneforge.data import pydoc as rows
from tuneforge.data import stdlib
from tuneforge.data.pydoc import DEFAULT, DESCRIBE_PARAMETER, NAME, PARAMETERS, SUMMARISE, TEMPLATES, pydoc, pydoc_text
from tuneforge.data.rows import Row
from tuneforge.data.stdlib import Parameter, Symbol, documents, is_held_out, modules, symbols
from tuneforge.errors import TuneforgeError

ODD = '''
import sys
if sys.platform == "never":
    def here(x):
        """Do it there."""
else:
    def here(y):
        """Do it here."""
class C(dict, metaclass=type):
    @property
    def p(self):
        """Get it."""
    @p.setter
    def p(self, value):
        """Set it."""
    @staticmethod
    def s(x):
        """No self to drop."""
    @classmethod
    def c(cls, x):
        """One to drop."""
    async def w(self):
        """Wait for it: \\d is no escape."""
    class D:
        """Inside."""
    def silent(self):
        def hidden():
            """Not reachable by name."""
'''

IMPORTABLE = (
    "argparse",
    "textwrap",
    "json.decoder",
    "json.encoder",
    "shutil",
    "statistics",
    "difflib",
    "random",
    "ast",
)
"""Pure Python, free of side effects, of both sides of the split."""

CHILD = """
import hashlib, json, sys
import tuneforge.data.pydoc as data
before = set(sys.modules)
rows = data.pydoc()
text = json.dumps([[dict(r.fields), r.origin, r.group, r.held_out] for r in rows] + [list(data.documents(True))])
print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules), hashlib.sha256(text.encode()).hexdigest()]))
"""


def in_child(hash_seed: str) -> list[Any]:
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, check=True)
    assert not done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def fake(root: Path, files: dict[str, str]) -> Path:
    """A folder that stands for the library: relative path -> source."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def symbol(doc: str, *parameters: str, name: str = "f", kind: str = "function") -> Symbol:
    args = tuple(Parameter(parameter, None) for parameter in parameters)
    return Symbol("m", name, f"def {name}({', '.join(parameters)})", inspect.cleandoc(doc), kind, args)


@cache
def by_dotted() -> dict[str, Symbol]:
    return {found.dotted: found for found in symbols()}


def triple(row: Row) -> tuple[str, ...]:
    return tuple(row.fields[column] for column in ("instruction", "input", "output"))


def shingles(texts: list[str]) -> set[str]:
    words = [text.split() for text in texts]
    return {" ".join(text[at : at + 8]) for text in words for at in range(len(text) - 7)}


def test_there_are_thousands_of_distinct_short_rows() -> None:
    found = pydoc()
    assert len(found) >= 3000
    assert len({triple(row) for row in found}) == len(found)
    assert {tuple(row.fields) for row in found} == {("instruction", "input", "output")}
    for row in found:
        instruction, given, answer = triple(row)
        assert instruction
        assert answer == answer.strip() != ""
        assert len(given) + len(answer) <= 600
        assert (instruction + given + answer).isascii()
        assert "\n" not in answer
        assert "{" not in instruction


def test_every_task_has_its_share_and_several_wordings() -> None:
    by_task = {task: pydoc(tasks=[task]) for task in TEMPLATES}
    total = sum(map(len, by_task.values()))
    assert total == len(pydoc())
    assert {task: len(found) for task, found in by_task.items()} == rows.AT_MOST
    share = {task: len(found) / total for task, found in by_task.items()}
    assert min(share.values()) > 0.03
    assert share[PARAMETERS] + share[DEFAULT] <= 0.4
    for task, found in by_task.items():
        wordings = Counter(triple(row)[0].split("`")[0].split(" this")[0] for row in found)
        assert len(wordings) >= 3, task


def test_a_signature_is_read_right() -> None:
    answers = {row.origin: triple(row)[2] for row in (q.row for q in rows.questions() if q.task == rows.SIGNATURE)}
    known = {
        "configparser.RawConfigParser": "class, public",
        "difflib.SequenceMatcher.__init__": "method, special, 4 parameters, 4 defaults, no stars",
        "textwrap.shorten": "function, public, 2 parameters, 0 defaults, **",
        "functools.update_wrapper": "function, public, 4 parameters, 2 defaults, no stars",
        "textwrap.TextWrapper._split": "method, private, 1 parameter, 0 defaults, no stars",
    }
    checked = {name: answers[name] for name in known if name in answers}
    assert len(checked) >= 2, "the hash left out nearly all of them"
    assert checked == {name: known[name] for name in checked}
    assert len(set(answers.values())) > 100


def test_none_is_not_the_answer_to_every_default() -> None:
    answers = Counter(triple(row)[2] for row in pydoc(tasks=[DEFAULT]))
    assert answers["None"] < 0.35 * answers.total()
    assert len(answers) > 100


def test_the_split_tears_no_package_and_marks_each_row() -> None:
    found = pydoc()
    sides: dict[str, set[bool]] = {}
    for row in found:
        module = by_dotted()[row.origin].module
        assert row.held_out is is_held_out(module)
        sides.setdefault(row.group, set()).add(is_held_out(module))
    assert all(len(side) == 1 for side in sides.values())
    held = [row for row in found if row.held_out]
    # Measured on 3.11; other versions have other modules.
    slack = 0.02 if sys.version_info[:2] == (3, 11) else 0.05
    assert len(held) / len(found) == pytest.approx(0.1, abs=slack)
    sizes = Counter(row.group for row in held)
    assert len(sizes) >= 12
    assert sizes.most_common(1)[0][1] < 0.3 * len(held)
    for task in TEMPLATES:
        assert 0.05 < sum(bool(row.held_out) for row in pydoc(tasks=[task])) / len(pydoc(tasks=[task])) < 0.15


def test_the_split_is_the_same_on_every_machine() -> None:
    held = ["urllib.parse", "collections", "pathlib", "difflib", "textwrap", "argparse", "functools"]
    trained = ["json.decoder", "asyncio.tasks", "tkinter", "email.message", "decimal", "unittest.case", "os"]
    assert [name for name in held + trained if is_held_out(name)] == held


def test_near_copies_are_on_one_side() -> None:
    pairs = [("_pydecimal", "decimal"), ("_pyio", "io"), ("ntpath", "posixpath"), ("bz2", "lzma"), ("_py_abc", "abc")]
    pairs += [("wave", "aifc"), ("_collections_abc", "collections"), ("threading", "asyncio.locks"), ("cgi", "urllib")]
    assert [pair for pair in pairs if stdlib.package(pair[0]) != stdlib.package(pair[1])] == []
    assert stdlib.package("json.decoder") == "json"
    assert stdlib.package("__future__") == "__future__"


def test_scanning_imports_nothing_and_is_the_same_in_every_process() -> None:
    added, loaded, digest = in_child("1")
    # sysconfig reads its build data to say where the library is, a latin-1 source needs its codec: no more than that.
    assert [name for name in added if not name.startswith(("_sysconfigdata", "encodings."))] == []
    assert {"this", "antigravity", "tkinter", "torch", "numpy"}.isdisjoint(loaded)
    assert in_child("2")[2] == digest
    here = json.dumps(
        [[dict(r.fields), r.origin, r.group, r.held_out] for r in pydoc()] + [list(documents(held_out=True))]
    )
    assert hashlib.sha256(here.encode()).hexdigest() == digest


def test_no_module_of_a_library_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    root = fake(tmp_path / "lib", {"loud.py": f'"""A module that acts."""\nopen({str(mark)!r}, "w").close()\n'})
    assert [found.name for found in modules(root)] == ["loud"]
    assert not mark.exists()


def attribute(dotted: str, module: str) -> Any:
    """The object itself, as its class holds it: not bound, and a staticmethod still a staticmethod."""
    found: Any = importlib.import_module(module)
    for part in dotted.removeprefix(module).split(".")[1:]:
        found = inspect.getattr_static(found, part)
    return found


def test_signatures_and_docstrings_agree_with_what_python_says_of_itself() -> None:
    compared = Counter[str]()
    for found in symbols():
        if found.module not in IMPORTABLE or found.kind not in ("function", "method"):
            continue
        held = attribute(found.dotted, found.module)
        real = held.__func__ if isinstance(held, classmethod | staticmethod) else held
        if not inspect.isfunction(real):
            continue
        theirs_doc = inspect.cleandoc(real.__doc__ or "").strip()
        assert [line.rstrip() for line in theirs_doc.splitlines()] == found.doc.splitlines()
        theirs = list(inspect.signature(real, follow_wrapped=True).parameters.values())
        theirs = theirs[1:] if found.kind == "method" and not isinstance(held, staticmethod) else theirs
        assert [p.name.lstrip("*") for p in found.parameters] == [p.name for p in theirs], found.dotted
        for mine, other in zip(found.parameters, theirs, strict=True):
            assert (mine.default is None) == (other.default is inspect.Parameter.empty)
            assert mine.name.count("*") == {"VAR_POSITIONAL": 1, "VAR_KEYWORD": 2}.get(other.kind.name, 0)
        compared[found.module] += 1
    assert compared.total() > 150
    assert len(compared) == len(IMPORTABLE)


def test_known_rows() -> None:
    known = by_dotted()
    shorten = known["textwrap.shorten"]
    assert shorten.signature == "def shorten(text, width, **kwargs)"
    assert shorten.kind == "function"
    (asked,) = rows._parameters(shorten)
    assert (asked.input, asked.output) == ("def textwrap.shorten(text, width, **kwargs)", "text, width, **kwargs")
    (default,) = rows._default(known["textwrap.wrap"])
    assert (default.parameter, default.output) == ("width", "70")
    assert rows.first_sentence(shorten) == "Collapse and truncate the given text to fit in the given width."
    assert known["json.decoder.JSONDecoder.decode"].kind == "method"
    assert known["json.decoder"].kind == "module"


def test_what_the_rows_of_a_small_library_say(tmp_path: Path) -> None:
    source = '''"""Tools for planting trees."""
class Garden:
    """A piece of land with trees on it."""
    def plant(self, tree, depth=3, *, water=None):
        """Put the tree into the ground at the given depth.

        depth -- how far below the surface, in decimetres
        """
    def _dig(self, tree):
        """Make a hole that is large enough for the tree."""
'''
    found = rows.questions(fake(tmp_path, {"garden.py": source}))
    plant = "def garden.Garden.plant(self, tree, depth=3, *, water=None)"
    # Each of the three gives its summary or its name, never both; a private name gives its signature alone.
    assert [(q.task, q.input, q.output) for q in found] == [
        (SUMMARISE, "module garden", "Tools for planting trees."),
        (rows.SIGNATURE, "class garden.Garden", "class, public"),
        (NAME, "A piece of land with trees on it. (module garden)", "Garden"),
        (rows.SIGNATURE, plant, "method, public, 3 parameters, 2 defaults, no stars"),
        (SUMMARISE, plant, "Put the tree into the ground at the given depth."),
        (DESCRIBE_PARAMETER, plant, "how far below the surface, in decimetres"),
        (PARAMETERS, plant, "tree, depth, water"),
        (DEFAULT, plant, "3"),
        (rows.SIGNATURE, "def garden.Garden._dig(self, tree)", "method, private, 1 parameter, 0 defaults, no stars"),
    ]
    row = next(q for q in found if q.task == DESCRIBE_PARAMETER).row
    assert "`depth`" in row.fields["instruction"]
    assert (row.origin, row.group) == ("garden.Garden.plant", "garden")


@pytest.mark.parametrize(
    ("doc", "said"),
    [
        ("Return the number of trees. Then rest.", "Return the number of trees."),
        (
            "Return the number of trees,\nor zero, e.g. in winter.\nMore.",
            "Return the number of trees, or zero, e.g. in winter.",
        ),
        ("f(x) -> int\n\nReturn the number of trees.", "Return the number of trees."),
        ("m.f\n\nReturn the number of trees.", "Return the number of trees."),
        ("f -- Return the number of trees.", "Return the number of trees."),
        ("Return ``x`` as a :class:`~m.Tree`, *x* or `y'.", "Return x as a m.Tree, x or y."),
        ("Return the number of trees\n\n- old ones\n- new ones", "Return the number of trees"),
        ("Return all of the trees\n    >>> f(1)\n    2", "Return all of the trees"),
        ("Return the trees:\n\n- old ones", ""),
        ("Return the trees of\n- the old", ""),
        ("Plant trees\nThis needs water and a spade and a lot of time", ""),
        ("Plant trees (if there are any.", ""),
        ("Deprecated since the last of the woods.", ""),
        ("This is deprecated, use the other one.", ""),
        ("TODO: say what this does here.", ""),
        ("x.__add__(y) <==> x + y", ""),
        ("f(x) -> int", ""),
        ("Pflanze B\u00e4ume in den Garten.", ""),
        ("plant = 1*tree [water]", ""),
        ("Short one.", ""),
        ("Word " * 60, ""),
    ],
)
def test_first_sentence(doc: str, said: str) -> None:
    assert rows.first_sentence(symbol(doc)) == said


@pytest.mark.parametrize(
    ("doc", "said"),
    [
        (":param x: the number of trees", "the number of trees"),
        (":param int x: the number of trees\n    in the wood", "the number of trees in the wood"),
        ("Args:\n    x: the number of trees. Not bushes.\n    y: other", "the number of trees."),
        ("Args:\n    x (int): the number of trees", "the number of trees"),
        ("- x -- the number of trees", "the number of trees"),
        ("x : int\n    the number of trees", "the number of trees"),
        ("Count. *x* is the number of trees.", "x is the number of trees."),
        ("*x* is the number of trees. Count.", "x is the number of trees."),
        ("Count them. If x is true, bushes too.", "If x is true, bushes too."),
        ("The optional argument 'x' must be positive.", "The optional argument 'x' must be positive."),
        ("If it is true, bushes too.", ""),
        ("z: the number of trees", ""),
        ("x: int", ""),
        ("x -- a number     a second column", ""),
        ("x: see the other function", ""),
    ],
)
def test_described_parameters(doc: str, said: str) -> None:
    found = rows.described_parameters(symbol(f"Do it.\n\n{doc}", "x", "y"))
    assert found.get("x", "") == said
    assert "z" not in found


def test_a_class_is_described_by_what_its_init_takes(tmp_path: Path) -> None:
    source = '''
class Garden:
    """A piece of land.

    size -- square metres of the whole
    """
    def __init__(self, size, *trees, soil="loam", **more):
        pass
'''
    (found,) = symbols(fake(tmp_path, {"garden.py": source}))
    assert [p.name for p in found.parameters] == ["size", "*trees", "soil", "**more"]
    (asked,) = rows._describe_parameter(found)
    assert asked.input == "def garden.Garden.__init__(self, size, *trees, soil='loam', **more)"
    assert asked.output == "square metres of the whole"


def test_a_library_is_read_with_its_oddities(tmp_path: Path) -> None:
    root = fake(
        tmp_path,
        {
            "b/deep.py": "def f(a, /, b=1, *c, d, e=2, **g) -> int:\n    'Do the deep thing.'\n",
            "b/__init__.py": "'A package.'\n",
            "a.py": ODD,
            "broken.py": "def f(:\n",
            "site/packages.py": "'Not a folder to skip.'\n",
            "site-packages/requests.py": "'Installed.'\n",
            "test/x.py": "'A test.'\n",
            "idlelib/y.py": "'An editor.'\n",
            "config-3.11-x86_64/makesetup.py": "'Build files.'\n",
        },
    )
    (root / "nulls.py").write_bytes(b"'doc'\0")
    (root / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n'A caf\xe9.'\n")
    (root / "undecodable.py").write_bytes(b"'A caf\xe9.'\n")
    assert [m.name for m in modules(root)] == ["a", "b", "b.deep", "latin", "site.packages"]
    found = {s.dotted: s for s in symbols(root)}
    assert found["b.deep.f"].signature == "def f(a, /, b=1, *c, d, e=2, **g) -> int"
    assert [p.name for p in found["b.deep.f"].parameters] == ["a", "b", "*c", "d", "e", "**g"]
    assert [p.default for p in found["b.deep.f"].parameters] == [None, "1", None, None, "2", None]
    assert {name: (s.kind, s.doc) for name, s in found.items() if name.startswith("a.")} == {
        "a.here": ("function", "Do it there."),
        "a.C.p": ("property", "Get it."),
        "a.C.s": ("method", "No self to drop."),
        "a.C.c": ("method", "One to drop."),
        "a.C.w": ("method", "Wait for it: \\d is no escape."),
        "a.C.D": ("class", "Inside."),
    }
    assert [p.name for name in ("a.C.s", "a.C.c") for p in found[name].parameters] == ["x", "x"]
    assert found["a.C.w"].signature == "async def w(self)"
    assert found["latin"].doc == "A caf\u00e9."


@pytest.mark.parametrize(
    ("signature", "shown"),
    [
        ("async def d(self, d)", "async def m.d(self, d)"),
        ("class d(d)", "class m.d(d)"),
        ("def d()", "def m.d()"),
    ],
)
def test_the_dotted_name_replaces_the_bare_one(signature: str, shown: str) -> None:
    assert rows._header(Symbol("m", "d", signature, "Doc.", "function")) == shown


def test_a_document_reads_like_help(tmp_path: Path) -> None:
    source = '''"""Tools for planting."""
class Garden:
    def plant(self, tree=None):
        """Put it in the ground.

        Water it, don\u2019t wait.
        """
def rake():
    """Collect the leaves."""
'''
    (text,) = [*documents(False, fake(tmp_path, {"garden.py": source})), *documents(True, tmp_path)]
    assert text == (
        "module garden\n\nTools for planting.\n\nContents\n    plant: Put it in the ground.\n"
        "    rake: Collect the leaves.\n\nclass Garden\n\n    def plant(self, tree=None)\n"
        "        Put it in the ground.\n\n        Water it, don't wait.\n"
        "        Parameters of plant: tree\n        Defaults: tree is None\n\n"
        "def rake()\n    Collect the leaves.\n"
    )


def test_equal_docstrings_are_kept_once_and_on_the_training_side(tmp_path: Path) -> None:
    assert [is_held_out(name) for name in ("argparse", "json", "os")] == [True, False, False]
    copied = "def f():\n    'The very same words.'\n"
    root = fake(
        tmp_path, {"argparse.py": copied + "def g():\n    'Its own words.'\n", "json.py": copied, "os.py": copied}
    )
    assert [s.dotted for s in symbols(root)] == ["argparse.g", "json.f"]
    assert "same words" not in "".join(documents(True, root))


def test_topics_are_for_training_and_come_once(tmp_path: Path) -> None:
    assert stdlib.topics(fake(tmp_path, {"json.py": "'Words.'\n"})) == []
    texts = {"long": "Title\n***\n\nOne.\n\nTwo.\n\nThree.", "part": "One.\n\nTwo.", "other": "Else.\n\nTwo."}
    fake(tmp_path, {"pydoc_data/topics.py": f"# made by a tool\ntopics = {texts!r}\n"})
    assert stdlib.topics(tmp_path) == ["Title\n***\n\nOne.\n\nTwo.\n\nThree.\n", "Else.\n\nTwo.\n"]
    assert list(documents(False, tmp_path))[1:] == stdlib.topics(tmp_path)
    assert list(documents(True, tmp_path)) == []


def test_documents_of_the_two_sides_share_no_module_and_hardly_a_sentence() -> None:
    train, held = list(documents(held_out=False)), list(documents(held_out=True))
    titles = [{text.split("\n")[0] for text in side if text.startswith("module ")} for side in (train, held)]
    assert not titles[0] & titles[1]
    assert not {stdlib.package(t.split()[1]) for t in titles[0]} & {stdlib.package(t.split()[1]) for t in titles[1]}
    assert len(titles[0]) > 300
    assert len(held) == len(titles[1]) > 20
    assert len(train) - len(titles[0]) == len(stdlib.topics()) > 30
    seen, asked = shingles(train), shingles(held)
    assert len(asked) > 10_000
    assert len(asked & seen) < 0.01 * len(asked)
    assert sum(map(len, held)) / sum(len(t) for t in train + held if t.startswith("module ")) == pytest.approx(
        0.1, abs=0.03
    )


def test_text_rows_are_the_documents_with_their_side() -> None:
    found = pydoc_text()
    assert [row.fields["text"] for row in found if row.held_out] == list(documents(held_out=True))
    assert [row.fields["text"] for row in found if not row.held_out] == list(documents(held_out=False))
    assert "module json.decoder" in {row.origin for row in found}


def test_tasks_are_chosen_by_name_and_a_wrong_one_is_named() -> None:
    both = pydoc(tasks=[NAME, DEFAULT])
    alone = [*pydoc(tasks=[NAME]), *pydoc(tasks=[DEFAULT])]
    assert sorted(map(triple, both)) == sorted(map(triple, alone))
    with pytest.raises(TuneforgeError) as caught:
        pydoc(tasks=["sumarise"])
    assert caught.value.problems[0].path == "data.tasks"
    assert "did you mean 'summarise'" in caught.value.problems[0].fix
    with pytest.raises(TuneforgeError, match="leaves no rows"):
        pydoc(tasks=[])


def test_a_python_without_source_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "json.pyc").write_bytes(b"")
    with pytest.raises(TuneforgeError, match="no Python source in") as caught:
        modules(tmp_path)
    assert "data=file" in caught.value.problems[0].fix


def test_the_library_is_read_once() -> None:
    pydoc()
    before = stdlib._scan.cache_info().misses
    pydoc()
    list(documents(held_out=True))
    assert stdlib._scan.cache_info().misses == before
