"""From the bytes of a file to text: UTF-8, or what `data.encoding` names where that makes sense of the bytes."""

import codecs
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from tuneforge.console import say, warn
from tuneforge.errors import Problem, TuneforgeError, did_you_mean

UTF8 = "utf-8"
COMMON = (
    "cp1252", "iso8859_15", "cp1250", "iso8859_2", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256",
    "mac_roman", "cp850", "cp866", "cp874", "gb18030", "big5", "cp932", "euc_jp", "cp949", "utf_16",
    "utf_16_le", "utf_16_be",
)  # fmt: skip
"""Encodings that are looked for, under Python's names."""

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff]")
"""Characters that no text file has; bytes 0x80 to 0x9f read as Latin-1 become some of them."""
_LOST = re.compile(r"[\x80-\x9f\ufffd]")
"""Characters that are left behind by a conversion from the wrong encoding."""
_SAMPLE = 1 << 16
"""Bytes that an encoding is looked for in."""
_SHOWN = 30
"""Characters around the first letter beyond ASCII that a message shows."""
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_ISO2022 = re.compile(rb"\x1b\$[@B(]")
"""Switches to two-byte characters; the text between is ASCII, and so valid UTF-8."""
_RUN = re.compile(r"[\u0080-\u024f\u02c6\u02dc\u2013-\u203a\u20ac\u2122]+")
"""What UTF-8 beyond ASCII looks like in Windows-1252."""
_ESCAPED = re.compile(r"\\u00(?:[89][0-9a-f]|c[23]\\u00[89ab][0-9a-f])", re.IGNORECASE)
"""The same in JSON's escapes."""
_BY_CHANCE = 4
"""Characters beyond ASCII of a line from which on it is no chance that it is UTF-8."""
_LATIN = ("cp1252", "iso8859_15", "cp1250", "iso8859_2", "cp1254", "mac_roman", "cp850")
"""Encodings of languages in Latin letters, the most common first."""
_ISOLATED = 1.6
"""Mean length of the runs of bytes beyond ASCII below which a text is in Latin letters, which have few accents."""
_CLOSE = 2.5
"""... and below which it may be, as Polish or French in capitals, if statistics agree."""
_MISPLACED = re.compile(
    r"\u00a4|(?<=[^\W\d_])[\u00b1\u00b3\u00b6\u00b9\u00bc-\u00bf\u02dd\u02db\u02c7\u02d8\u02d9]"
    r"|[\u00b1\u00b3\u00b6\u00b9\u00bc-\u00be\u02dd\u02db\u02c7\u02d8\u02d9](?=[^\W\d_])"
)
"""Signs beside a letter, which no one writes there, and the currency sign, which no one writes at all."""
_INSIDE = re.compile(
    r"(?<=[^\W\d_])[\u00a1-\u00a9\u00ab-\u00b0\u00b4\u00b6-\u00b8\u00bb\u00d7\u00f7\u0192\u02c6"
    r"\u201a\u201e\u2020-\u2022\u2026\u2030\u2039\u203a](?=[^\W\d_])"
)
"""Signs between two letters: what accented letters of DOS and of old Macs read as in Windows-1252."""
_TURKISH = re.compile(r"[\u00f0\u00fe\u00fd\u00de\u00dd\u00d0]")
"""What Turkish letters read as in Windows-1252. Icelandic has them too, beside vowels that Turkish does not have."""
_ICELANDIC = re.compile(r"[\u00e1\u00e9\u00ed\u00f3\u00fa\u00e6]")
_FEW = 8
"""Distinct letters up to which the statistics of Chinese, Japanese and Korean say little, and Chinese is likeliest."""


def decode(raw: bytes, name: str, encoding: str = UTF8, several: bool = False) -> str:
    """The text of a file.

    Args:
        raw: its bytes.
        name: how messages call it.
        encoding: `data.encoding`.
        several: it is one of several files, of which some may be UTF-8 all the same.

    Raises:
        TuneforgeError: the bytes are not in this encoding, or read as text that no one wrote.
    """
    wanted = _known(encoding)
    utf8 = _strict(raw, UTF8)
    if wanted == UTF8:
        return _utf8(raw, name)
    if utf8 is not None and utf8 != _strict(raw, wanted):
        if several:
            say(f"{name} is read as {UTF8}, which it is, and not as {encoding}")
            return utf8
        raise _error("wrong-encoding", f"{name} is UTF-8, and not {encoding}", "data.encoding=utf-8", "data.encoding")
    if utf8 is None:
        _refuse_mixture(raw, name)
    try:
        text = raw.decode(wanted)
    except UnicodeDecodeError as error:
        raise _wrong(raw, name, encoding, f"cannot be decoded: {_place(raw, error.start)}") from None
    text = text.removeprefix("\ufeff")
    control = _CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        raise _wrong(raw, name, encoding, f"reads with the control character {control[0]!a} on line {line}")
    if text.isascii():
        return text
    likely = dict(guesses(raw))
    if likely and not _plausible(_sample(raw, wanted), [*likely.values()]):
        raise _wrong(raw, name, encoding, f"reads as {_excerpt(text)!r}, which is hardly what was written")
    say(f"{name} is read as {encoding}: {_excerpt(text)!r}")
    return text


def _known(encoding: str) -> str:
    try:
        found = codecs.lookup(encoding)
        "".encode(encoding)  # refuses base64 and other codecs that are not of text
    except (LookupError, ValueError, TypeError):
        hint = did_you_mean(encoding, [UTF8, *COMMON])
        raise _error("unknown-encoding", f"unknown encoding {encoding!r}", hint, "data.encoding") from None
    return UTF8 if found.name in ("utf-8", "utf-8-sig", "ascii") else found.name


def _utf8(raw: bytes, name: str) -> str:
    try:
        text = raw.decode(UTF8)
    except UnicodeDecodeError as error:
        _refuse_mixture(raw, name)
        where = f"{_place(raw, error.start)} (0x{raw[error.start]:02x})"
        raise _error("not-utf8", f"{name} is not UTF-8: {where}", _advice(raw, name)) from None
    nul = raw.find(b"\0")
    if nul >= 0:
        # Text in UTF-16 without a mark is valid UTF-8 with a NUL beside every ASCII letter.
        wide = _wide(raw)
        fix = _named(wide, raw, name) if wide else "remove it: the file is damaged or binary"
        raise _error("not-utf8", f"{name} holds a NUL byte: {_place(raw, nul)}", fix)
    if _ISO2022.search(raw):
        raise _error("not-utf8", f"{name} is in ISO-2022, and not UTF-8", _named("iso2022_jp", raw, name))
    lost = _LOST.findall(text) or _twice_encoded(text) or _ESCAPED.findall(text)
    if lost:
        line = text.count("\n", 0, text.index(lost[0])) + 1
        message = f"{name} holds {len(lost)} characters that a wrong conversion leaves, such as {lost[0]!a}"
        fix = "convert the original file again, from the encoding that it is in"
        warn(Problem("garbled-text", message, "data.path", f"{name}:{line}", fix))
    return text.removeprefix("\ufeff")


def _twice_encoded(text: str) -> list[str]:
    """Sequences that were UTF-8, read as Windows-1252 and written as UTF-8 again: `Ã©` for an accented letter."""
    at = next((i for i, character in enumerate(text) if not character.isascii()), len(text))
    return [found for found in _RUN.findall(text, at, at + _SAMPLE) if _was_utf8(found)]


def _was_utf8(run: str) -> bool:
    for encoding in ("cp1252", "latin-1"):
        try:
            return len(run.encode(encoding).decode(UTF8)) < len(run)
        except UnicodeError:
            continue
    return False


def _refuse_mixture(raw: bytes, name: str) -> None:
    """Refuse a file of which some lines are UTF-8 and others are not: no one encoding reads it right."""
    if raw.startswith(_MARKS) or b"\0" in raw[:_SAMPLE]:
        return
    lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), 1) if not line.isascii()]
    good = [(number, text) for number, line in lines if (text := _strict(line, UTF8)) is not None]
    numbers = {number for number, _ in good}
    bad = [(number, line) for number, line in lines if number not in numbers]
    other = b"\n".join(line for _, line in bad)
    # Two or three Chinese characters of a line can be UTF-8 by chance, accented letters cannot.
    few = 1 if _mean_run(other) < _ISOLATED else _BY_CHANCE
    sure = next((number for number, text in good if len(text) - len(re.sub(r"[^\x00-\x7f]", "", text)) >= few), None)
    if sure is None or not bad:
        return
    encoding, text = next(guesses(other), ("", ""))
    reads = f"; as {encoding} line {bad[0][0]} reads {_excerpt(text)!r}" if encoding else ""
    message = f"{name} mixes encodings: line {sure} is UTF-8, and {len(bad)} lines are not, the first line {bad[0][0]}"
    raise _error("mixed-encodings", message, f"convert these lines to UTF-8, or remove them{reads}")


def _wide(raw: bytes) -> str:
    """The encoding of text of two or four bytes a character; "" where it is not."""
    if raw.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf_32"
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf_16"
    share = raw[:_SAMPLE].count(b"\0") / len(raw[:_SAMPLE])
    if share * 3 <= 1:
        return ""
    first = raw.find(b"\0") == 0
    if share > 0.6:  # three of four bytes of ASCII, half of them in UTF-16
        return "utf_32_be" if first else "utf_32_le"
    return "utf_16_be" if first else "utf_16_le"


def _place(raw: bytes, offset: int) -> str:
    line = raw.count(b"\n", 0, offset) + 1
    return f"line {line}, byte offset {offset}"


def _error(code: str, message: str, fix: str, path: str = "data.path") -> TuneforgeError:
    return TuneforgeError(code, message, path=path, fix=fix)


def _wrong(raw: bytes, name: str, encoding: str, what: str) -> TuneforgeError:
    return _error("wrong-encoding", f"{name}, read as {encoding}, {what}", _advice(raw, name), "data.encoding")


def _advice(raw: bytes, name: str) -> str:
    """The likely encodings, with what the file reads as in each, so that the reader can judge."""
    found = list(guesses(raw))[:3]
    if not found:
        return (
            "it may be damaged or binary; if it is text, name its encoding (data.encoding=...) or convert it to UTF-8"
        )
    first = _named(found[0][0], raw, name)
    others = "".join(f"; data.encoding={_typed(other)} reads {_excerpt(text)!r}" for other, text in found[1:])
    return first + others


def _named(encoding: str, raw: bytes, name: str) -> str:
    shown = _excerpt(_sample(raw, encoding))
    reads = f" (it reads {shown!r})" if shown else ""
    iconv = {"iso8859_15": "ISO-8859-15", "iso8859_2": "ISO-8859-2", "euc_jp": "EUC-JP", "koi8_r": "KOI8-R"}
    iconv |= {"mac_roman": "MACINTOSH", "iso2022_jp": "ISO-2022-JP"}
    label = iconv.get(encoding, encoding.upper().replace("UTF_", "UTF-").replace("_", ""))
    convert = f"iconv -f {label} -t UTF-8 {name} > utf8-{Path(name).name}"
    return f"data.encoding={_typed(encoding)}{reads}; or convert it, for example: {convert}"


def _typed(encoding: str) -> str:
    return encoding.replace("_", "-") if encoding.startswith("utf") else encoding


def _sample(raw: bytes, encoding: str) -> str:
    """The start of the text in this encoding; of a file of single bytes, its lines with letters beyond ASCII."""
    piece = _piece(raw)
    return piece.decode(encoding, "ignore").removeprefix("\ufeff")


def _piece(raw: bytes) -> bytes:
    if raw.startswith(_MARKS) or raw[:_SAMPLE].count(b"\0") * 8 > len(raw[:_SAMPLE]):
        return raw[:_SAMPLE]
    lines = [line for line in raw.splitlines(keepends=True) if not line.isascii()]
    kept: list[bytes] = []
    size = 0
    for line in lines:
        if size + len(line) > _SAMPLE and kept:
            break
        kept.append(line)
        size += len(line)
    return b"".join(kept)


def guesses(raw: bytes) -> Iterator[tuple[str, str]]:
    """Encodings that the bytes may be in, with the text that a sample of them reads as, the likeliest first."""
    # Imported here: of use with an error only.
    from charset_normalizer import from_bytes

    piece = _piece(raw)
    if not piece:
        return
    wide = _wide(piece)
    if wide == "utf_16" or wide.startswith("utf_32"):
        yield wide, piece.decode(wide, "ignore").removeprefix("\ufeff")
        return
    matches = from_bytes(piece, cp_isolation=[*COMMON], cp_exclusion=[], enable_fallback=False)
    names = [match.encoding for match in matches]
    texts = {name: text for name in [*names, *_LATIN] if (text := _strict(piece, name)) is not None}
    runs = _mean_run(piece)
    if runs < _ISOLATED or (runs < _CLOSE and names[:1] in [[name] for name in _LATIN]):
        latin = sorted((name for name in _LATIN if name in texts), key=lambda name: misplaced(texts[name]))
        names = [*latin, *names]
    elif japanese := [name for name in ("euc_jp", "cp932") if _has_kana(texts.get(name, ""))]:
        names.insert(0, japanese[0])
    elif "gb18030" in texts and len(set(re.findall(r"[^\x00-\x7f]", texts["gb18030"]))) <= _FEW:
        names.insert(0, "gb18030")
    seen: set[str] = set()
    for encoding in names:
        if encoding in texts and texts[encoding] not in seen:
            seen.add(texts[encoding])
            yield encoding, texts[encoding]


def _strict(piece: bytes, encoding: str) -> str | None:
    """The text; None where it cannot be, or has characters that no text has."""
    try:
        text = piece.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text) else text.removeprefix("\ufeff")


def _mean_run(piece: bytes) -> float:
    """Mean length of the runs of bytes beyond ASCII; infinite for UTF-16."""
    runs = re.findall(rb"[\x80-\xff]+", piece)
    return sum(map(len, runs)) / len(runs) if runs and b"\0" not in piece else float("inf")


def _has_kana(text: str) -> bool:
    """Whether at least a quarter of the letters beyond ASCII are Hiragana or Katakana, as in Japanese alone."""
    letters = re.findall(r"[^\x00-\x7f]", text)
    return bool(letters) and 4 * len([letter for letter in letters if "\u3041" <= letter <= "\u30fe"]) >= len(letters)


def misplaced(text: str) -> int:
    """How many characters of a text in Latin letters no one would have written there."""
    turkish = 0 if _ICELANDIC.search(text) else len(_TURKISH.findall(text))
    capitals = sum(b > "\x7f" and a.islower() and b.isupper() for a, b in pairwise(text))
    return len(_MISPLACED.findall(text)) + len(_INSIDE.findall(text)) + turkish + capitals


def _plausible(text: str, likely: list[str]) -> bool:
    """Whether a text is one of the likely ones, and no worse than the likeliest where signs stand beside letters."""
    return text in likely and misplaced(text) <= misplaced(likely[0])


def _excerpt(text: str) -> str:
    """Some text around the first letter beyond ASCII."""
    at = next((i for i, character in enumerate(text) if not character.isascii()), 0)
    return " ".join(text[max(0, at - _SHOWN // 2) : at + _SHOWN].split())
