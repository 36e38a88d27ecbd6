"""What the trials of a sweep make once: files in a folder beside the study, named by what they were made from.

A file that is missing or cannot be read is made again, so that no trial waits for another or trusts a broken one.
"""

import hashlib
import json
import secrets
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tuneforge.artifacts.folder import read_json, require_no_link, write_json
from tuneforge.data.encode import Document, Encoded
from tuneforge.versions import versions


def digest_of(made_from: Any) -> str:
    """Of anything that JSON or `str` can show, with the versions of the libraries."""
    text = json.dumps([made_from, versions()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def digest_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that decides how a text becomes tokens."""
    parts = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map]
    return digest_of(parts)


def digest_of_rows(documents: Sequence[Document]) -> str:
    """Of tokens and labels."""
    found = hashlib.sha256()
    for document in documents:
        for part in (document.input_ids, document.labels):
            found.update(str(part.shape).encode() + part.tobytes())
    return found.hexdigest()


def encoded(folder: Path, made_from: Mapping[str, Any], make: Callable[[], Encoded]) -> Encoded:
    """The documents that `make` makes of `made_from`, read where a trial before has made them."""
    file = folder / f"rows-{digest_of(made_from)}.npz"
    found = _read_encoded(file)
    if found is None:
        found = make()
        _write_encoded(file, found)
    return found


def _read_encoded(file: Path) -> Encoded | None:
    try:
        # Reading checks each array against its CRC.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            lengths, origins = arrays["lengths"], json.loads(arrays["origins"].tobytes())
            ends = np.cumsum(lengths)[:-1]
            ids, labels = (np.split(arrays[name].astype(np.int64), ends) for name in ("input_ids", "labels"))
            truncated, dropped = arrays["counts"].tolist()
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return Encoded([Document(*parts) for parts in zip(ids, labels, origins, strict=True)], truncated, dropped)


def _write_encoded(file: Path, found: Encoded) -> None:
    temporary = _own(file)
    require_no_link(temporary)
    np.savez(
        temporary,
        input_ids=np.concatenate([d.input_ids for d in found.documents]).astype(np.int32),
        labels=np.concatenate([d.labels for d in found.documents]).astype(np.int32),
        lengths=np.array([len(d.input_ids) for d in found.documents]),
        origins=np.frombuffer(json.dumps([d.origin for d in found.documents]).encode(), np.uint8),
        counts=np.array([found.truncated, found.dropped]),
    )
    temporary.replace(file)


def _own(file: Path) -> Path:
    """A name of its own beside a file: trials that run at the same time make the same at once."""
    return file.with_name(f".{file.stem}.{secrets.token_hex(8)}{file.suffix}")


class Facts:
    """Numbers that belong to what they were made from, as one JSON file."""

    def __init__(self, folder: Path, kind: str, made_from: Mapping[str, Any]) -> None:
        self.file = folder / f"{kind}-{digest_of(made_from)}.json"

    def read(self) -> dict[str, Any] | None:
        """None where nobody has written them."""
        try:
            return read_json(self.file)
        except (OSError, ValueError):
            return None

    def write(self, facts: Mapping[str, Any]) -> None:
        """For the trials that follow."""
        write_json(self.file, facts)
