"""Encodings: the advice for a file that is no UTF-8 reads it right when followed, and a wrong choice is refused."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tuneforge.data.file import file
from tuneforge.data.source import general_examples
from tuneforge.errors import TuneforgeError

TEXTS = {
    "fr": "Le café coûte 3 € : déjà vu, l'été, où ça, garçon, Noël",
    "fr8": "Déjà vu, l'été, où ça, garçon, Noël, naïve",
    "th": "นี่คือข้อความภาษาไทย",
    "en": "He said \u201cyes\u201d \u2013 it\u2019s fine\u2026",
    "de": "Größe, Straße, über, schön, Äpfel, 5 m²",
    "es": "¿Dónde está el niño? ¡Mañana!",
    "half": "½ cup of crème, 3½ spoons",
    "oe": "le cœur et la sœur",
    "zh": "请解释一下什么是机器学习、以及它和深度学习的区别。",
    "hi": "你好",
    "tw": "請解釋什麼是機器學習、以及它和深度學習的差別。",
    "ja": "機械学習とは何かを説明してください。東京の天気はどうですか。",
    "ko": "기계 학습이 무엇인지 설명해 주세요.",
    "ru": "Объясните, пожалуйста, что такое машинное обучение.",
    "pl": "Proszę wyjaśnić, czym jest uczenie maszynowe. Źdźbło, żółw.",
    "el": "Εξηγήστε τι είναι η μηχανική μάθηση.",
    "tr": "Makine öğrenmesi nedir, aç\u0131klar m\u0131s\u0131n\u0131z? Şöyle: değil.",
    "is": "Það er gott að þú sért hér, ágæti vinur.",
}
PAIRS = [
    *[(text, "cp1252") for text in ("fr", "en", "de", "es", "half", "oe", "is")],
    *[(text, "iso8859_15") for text in ("fr", "de", "es", "oe")],
    *[("zh", "gbk"), ("zh", "gb18030"), ("hi", "gbk"), ("tw", "big5"), ("ja", "shift_jis"), ("ja", "euc_jp")],
    *[("ko", "euc_kr"), ("ru", "cp1251"), ("ru", "koi8_r"), ("pl", "cp1250"), ("pl", "iso8859_2"), ("el", "cp1253")],
    *[("tr", "cp1254"), ("ru", "cp866"), ("fr8", "cp850"), ("fr8", "mac_roman"), ("de", "cp850"), ("th", "cp874")],
    *[("fr", "utf-32"), ("zh", "utf-32-le"), ("fr", "utf-32-be")],
    *[(text, f"utf-16{end}") for text in ("fr", "zh", "ja") for end in ("", "-le", "-be")],
]


def write(folder: Path, name: str, text: str, encoding: str, plain: int) -> Path:
    """Two rows with the text, and others in ASCII."""
    rows = [{"instruction": "Say it", "output": text}] * 2 + [{"instruction": "Say it", "output": "it"}] * plain
    if name.endswith("csv"):
        content = "instruction,output\n" + "".join(f'"{row["instruction"]}","{row["output"]}"\n' for row in rows)
    else:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = folder / name
    path.write_bytes(content.encode(encoding))
    return path


def refused(path: Path, **options: Any) -> Any:
    with pytest.raises(TuneforgeError) as caught:
        file(path=str(path), **options)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize("plain", [0, 200])
@pytest.mark.parametrize("name", ["r.jsonl", "r.csv"])
@pytest.mark.parametrize(("text", "encoding"), PAIRS)
def test_the_advice_reads_the_file_right(text: str, encoding: str, name: str, plain: int, tmp_path: Path) -> None:
    path = write(tmp_path, name, TEXTS[text], encoding, plain)
    problem = refused(path)
    (advised,) = re.findall(r"^data\.encoding=(\S+)", problem.fix)
    rows = file(path=str(path), encoding=advised)
    assert rows[0].fields["output"] == TEXTS[text]
    assert file(path=str(path), encoding=encoding) == rows


def test_the_command_in_the_advice_converts_the_file(tmp_path: Path) -> None:
    problem = refused(write(tmp_path, "r.jsonl", TEXTS["fr"], "cp1252", 0))
    command = shlex.split(problem.fix[problem.fix.index("iconv") :].partition(" > ")[0])
    assert command == ["iconv", "-f", "CP1252", "-t", "UTF-8", "r.jsonl"]
    assert "(it reads '" in problem.fix
    assert "café" in problem.fix


@pytest.mark.parametrize(
    ("text", "encoding", "wrong"),
    [
        ("fr", "utf-8", "cp1252"),
        ("fr", "utf-8", "utf-16"),
        ("fr", "utf-8", "latin-1"),
        ("en", "cp1252", "latin-1"),
        ("fr", "cp1252", "gb18030"),
        ("fr", "cp1252", "cp1251"),
        ("fr", "iso8859_15", "latin-1"),
        ("oe", "iso8859_15", "cp1252"),
        ("zh", "gbk", "cp1252"),
        ("zh", "gbk", "big5"),
        ("zh", "gbk", "latin-1"),
        ("zh", "gbk", "shift_jis"),
        ("tw", "big5", "gbk"),
        ("ru", "cp1251", "cp1252"),
        ("ru", "cp1251", "koi8_r"),
        ("zh", "utf-16-be", "utf-16-le"),
        ("ja", "euc_jp", "ascii"),
    ],
)
def test_a_wrong_choice_is_refused_and_its_advice_works(text: str, encoding: str, wrong: str, tmp_path: Path) -> None:
    path = write(tmp_path, "r.jsonl", TEXTS[text], encoding, 3)
    problem = refused(path, encoding=wrong)
    assert problem.path == ("data.path" if wrong == "ascii" else "data.encoding")
    (advised,) = re.findall(r"^data\.encoding=(\S+)", problem.fix)
    assert file(path=str(path), encoding=advised)[0].fields["output"] == TEXTS[text]


@pytest.mark.parametrize("name", ["cp12525", "base64", "rot13", "", "no such"])
def test_an_unknown_encoding_is_refused(name: str, tmp_path: Path) -> None:
    problem = refused(write(tmp_path, "r.jsonl", "a", "utf-8", 0), encoding=name)
    assert (problem.code, problem.path) == ("unknown-encoding", "data.encoding")
    assert "cp1252" in problem.fix


def test_plain_ascii_and_a_mark_are_read_as_they_are(tmp_path: Path, capsys: Any) -> None:
    for encoding in ("utf-8-sig", "ascii", "utf-8"):
        path = write(tmp_path, "r.csv", "it", encoding, 0)
        assert file(path=str(path))[0].fields == {"instruction": "Say it", "output": "it"}
        assert file(path=str(path), encoding="cp1252" if encoding == "ascii" else "utf-8")[0].fields["output"] == "it"
    assert capsys.readouterr().out == ""


def test_text_that_a_wrong_conversion_left_is_said(tmp_path: Path, capsys: Any) -> None:
    garbled = TEXTS["en"].encode("cp1252").decode("latin-1")
    file(path=str(write(tmp_path, "r.jsonl", garbled, "utf-8", 0)))
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: data.path (r.jsonl:1): r.jsonl holds 10 characters that a wrong conversion leaves" in said


@pytest.mark.parametrize("escaped", [True, False])
def test_utf8_that_was_read_as_another_encoding_and_written_again_is_said(
    escaped: bool, tmp_path: Path, capsys: Any
) -> None:
    twice = TEXTS["fr"].encode().decode("cp1252", "ignore")
    for text, said in ((twice, True), (TEXTS["fr"], False), (TEXTS["pl"], False), (TEXTS["zh"], False)):
        path = tmp_path / "r.jsonl"
        path.write_text("\n" + json.dumps({"text": text}, ensure_ascii=escaped) + "\n", encoding="utf-8")
        file(path=str(path))
        printed = " ".join(capsys.readouterr().out.split())
        assert ("r.jsonl:2" in printed and "characters that a wrong conversion leaves" in printed) == said


def test_japanese_in_iso_2022_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    path = write(tmp_path, "r.csv", TEXTS["ja"], "iso2022_jp", 3)
    (advised,) = re.findall(r"^data\.encoding=([\w-]+)", refused(path).fix)
    assert file(path=str(path), encoding=advised)[0].fields["output"] == TEXTS["ja"]


MIXED = [("fr", "cp1252"), ("ru", "cp1251"), ("zh", "gbk"), ("ja", "shift_jis")]


@pytest.mark.parametrize(("text", "encoding"), MIXED)
@pytest.mark.parametrize("given", ["utf-8", ""])
def test_lines_of_two_encodings_are_refused_with_their_numbers(
    text: str, encoding: str, given: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "r.jsonl", TEXTS[text], "utf-8", 2)
    right = path.read_bytes()
    path.write_bytes(right + write(tmp_path, "s.jsonl", TEXTS[text], encoding, 0).read_bytes())
    problem = refused(path, encoding=given or encoding)
    assert "line 1 is UTF-8, and 2 lines are not, the first line 5" in problem.message
    assert TEXTS[text][:8] in problem.fix
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))  # the advice
    assert len(file(path=str(path))) == 4


def test_two_characters_that_are_utf8_by_chance_are_no_second_encoding(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(f"text\n联通\n{TEXTS['zh']}\n".encode("gbk"))
    assert "data.encoding=gb18030" in refused(path).fix
    assert [row.fields["text"] for row in file(path=str(path), encoding="gb18030")] == ["联通", TEXTS["zh"]]


def test_files_of_a_folder_may_be_in_utf8_or_in_the_encoding_that_is_given(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path, "a.jsonl", TEXTS["fr"], "utf-8-sig", 0)
    write(tmp_path, "b.jsonl", TEXTS["fr"], "cp1252", 0)
    (advised,) = re.findall(r"^data\.encoding=(\S+)", refused(tmp_path).fix)
    assert {row.fields["output"] for row in file(path=str(tmp_path), encoding=advised)} == {TEXTS["fr"]}
    assert "a.jsonl is read as utf-8, which it is, and not as cp1252" in " ".join(capsys.readouterr().out.split())


def test_another_file_of_the_run_is_advised_to_be_converted(tmp_path: Path) -> None:
    path = write(tmp_path, "general.jsonl", TEXTS["fr"], "cp1252", 0)
    with pytest.raises(TuneforgeError) as caught:
        general_examples(str(path), 1, 0, "data.replay.path")
    (problem,) = caught.value.problems
    assert problem.path == "data.replay.path"
    assert problem.fix.startswith("convert the files of the run to UTF-8: iconv -f CP1252 -t UTF-8 general.jsonl")
