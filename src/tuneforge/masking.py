"""Secrets: what looks like one, and the one function that every text passes on its way out of the process.

Three kinds are replaced by `***`: values under a key whose name says so (`api_key`), the token formats of well-known
vendors, and passwords in URLs. A fourth, a value that an interpolation read from the environment, is replaced by the
interpolation itself. Values of the first and the last kind are remembered, so that a library's message that repeats one
is masked as well.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

MASK = "***"

_SHORTEST = 6
"""Characters of a value that is searched for in text. Shorter ones (`true`, `128`) would be found everywhere."""
_SHORTEST_OF_ENVIRONMENT = 8
"""The same for variables that only their name makes a secret, and that no config reads."""

_VENDORS = (
    r"openai|anthropic|hf|huggingface|wandb|mlflow|kaggle|azure|aws|gcp|google|cohere|mistral|groq|github|gitlab|slack|"
    r"stripe"
)
_WORDS = (
    r"(?:[a-z0-9]*(?:password|passwd|passphrase|passcode|secret)s?|pwd|credentials?|bearer|authorization|cookies?|"
    r"(?:db|smtp|imap|ftp|mail|user|admin|root|login|ssh|key|pg|postgres|mysql|redis|mongo|proxy|http)_?pass|"
    r"(?:basic|proxy|http)_auth|connection_string|webhook(?:_url)?|"
    rf"(?:{_VENDORS}|api|access|secret|private|account|auth|signing|encryption|license|shared|ssh|master|service|deploy|"
    r"subscription|consumer|jwt|hmac|rsa|tls|ssl|pgp)_?key(?:_id)?|"
    r"(?:api|access|secret|private|signing|encryption|ssh)_?keys|"
    rf"(?:(?:{_VENDORS}|access|auth|api|bearer|client|hub|id|oauth|personal|refresh|secret|security|session|user|write|read|"
    r"bot|csrf|sas|service|upload|deploy|login|jwt|device)_?)?token|"
    r"(?:access|auth|api|bearer|client|refresh|oauth|secret|security|csrf)_?tokens)"
)
_SECRET_NAME = re.compile(rf"(?:^|[._-]|[^A-Za-z0-9]){_WORDS}$", re.IGNORECASE)
"""Of the last part of a key, in snake case."""
_SIGNATURE = re.compile(r"(?:^|[._-])sig(?:nature)?$", re.IGNORECASE)
"""Of a query parameter: whoever has a signed address may read what it names. In a config it is a word like others."""
_OTHER_TOKENS = re.compile(
    r"(?:^|_)(?:eos|bos|pad|unk|sep|cls|mask|eot|eom|eod|end|start|stop|begin|of_text|text|image|audio|video|special|"
    r"placeholder|think|tool|class|target|trigger|answer|new|add|next|first|last|"
    r"label|prompt|decoder_start|forced_bos|forced_eos|per)_tokens?$"
)
"""Tokens of a vocabulary."""
_SPECIAL = re.compile(r"<[^<>\s]{1,60}>|\[[A-Za-z0-9_]{1,60}\]")
"""How a token of a vocabulary is written: no secret under any name."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# Formats from the vendors' documentation: Hugging Face, OpenAI and Anthropic (sk-), GitHub, GitLab, AWS access key
# ids, Google API keys, Slack tokens and webhooks, JSON Web Tokens, npm, PyPI, Stripe, SendGrid, DigitalOcean,
# Databricks, Replicate, Weights & Biases, Groq, xAI, NVIDIA, Perplexity, Docker, Vault, LangSmith, Pinecone, Grafana,
# Shopify, Atlassian, Telegram, Discord, Twilio, Mailgun, Linear, Notion, Sentry, Azure storage, and PEM private keys.
_SHAPES = (
    r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    r"\bsk-(?=[A-Za-z_-]{0,200}[0-9])[A-Za-z0-9_-]{20,}",
    r"\b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{30,}",
    r"\bgithub_pat_[A-Za-z0-9_]{30,}",
    r"\bgl(?:pat|ptt|dt|rt|cbt|ft|soat)-[A-Za-z0-9_-]{20,}",
    r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
    r"\bAIza[A-Za-z0-9_-]{35}",
    r"\bGOCSPX-[A-Za-z0-9_-]{20,}",
    r"\bya29\.[A-Za-z0-9_-]{20,}",
    r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    r"\bxapp-[0-9]-[A-Za-z0-9-]{10,}",
    r"(?<=hooks\.slack\.com/services/)[A-Za-z0-9/]{20,}",
    r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    r"\bnpm_[A-Za-z0-9]{30,}",
    r"\bpypi-[A-Za-z0-9_-]{40,}",
    r"\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}",
    r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    r"\bdo[por]_v1_[a-f0-9]{40,}",
    r"\bdapi[a-f0-9]{32}\b",
    r"\br8_[A-Za-z0-9]{30,}",
    r"\bwandb_v1_[A-Za-z0-9_-]{20,}",
    r"\bgsk_[A-Za-z0-9]{30,}",
    r"\b(?:xai|nvapi|pplx)-[A-Za-z0-9_-]{30,}",
    r"\bdckr_pat_[A-Za-z0-9_-]{20,}",
    r"\bhv[sbr]\.[A-Za-z0-9_-]{20,}",
    r"\blsv2_(?:pt|sk)_[a-f0-9]{20,}_[a-f0-9]{8,}",
    r"\bpcsk_[A-Za-z0-9_]{20,}",
    r"\bgl(?:sa|c)_[A-Za-z0-9+/=]{20,}(?:_[a-f0-9]{8})?",
    r"\bshp(?:at|ca|pa|ss)_[a-f0-9]{32}\b",
    r"\bAT(?:ATT|CTT|BB)3?x?[A-Za-z0-9_=-]{30,}",
    r"\b[0-9]{8,10}:AA[A-Za-z0-9_-]{33}\b",
    r"(?<=/api/webhooks/)[0-9]{10,}/[A-Za-z0-9_-]{30,}",
    r"\bSK[0-9a-f]{32}\b",
    r"\bkey-[0-9a-f]{32}\b",
    r"\blin_api_[A-Za-z0-9]{30,}",
    r"\b(?:ntn|secret)_[A-Za-z0-9]{40,}",
    r"\bsntry[su]_[A-Za-z0-9+/=_-]{30,}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
)
_SHAPE = re.compile("|".join(_SHAPES))
# Each pattern is bounded or starts at the edge of a word, so that no text takes time quadratic in its length.
# A password may hold `/`, `?` and `@`, as SQLAlchemy reads it; digits up to a `/` are a port.
_USERINFO = re.compile(
    r"(?P<before>[A-Za-z][A-Za-z0-9+.-]{0,20}://(?:[^\s/?#@:'\"]{0,200}:(?!\d{1,5}(?:[/?#\s]|$))"
    # A user of the form name@server; what follows is a password only up to the next `/`.
    r"|[^\s/?#@:'\"]{1,200}@[^\s/?#@:'\"]{1,200}:(?=[^\s/?#@:'\"]{1,500}@)))(?P<secret>[^\s'\"<>,]{1,500})(?=@)"
)
_LONE_USER = re.compile(r"(?P<before>\bhttps?://)(?P<secret>[^\s/?#@:'\"]{1,500})(?=@)")
_QUERY = re.compile(r"(?P<before>[?&;](?P<key>[A-Za-z0-9_.-]{1,100})=)(?P<secret>[^\s&;#'\"<>]+)")
# key=value of overrides and command lines; "key": value of JSON and Python; key: value of YAML, key = value of TOML.
_PAIR = re.compile(
    r"(?P<before>(?<![A-Za-z0-9_.@/-])(?P<key>[A-Za-z0-9_.@/-]{1,200})(?:=|[\"'][ \t]{0,9}[:=][ \t]{0,9}))"
    r"(?P<secret>\$\{[^}\n]{1,200}\}|'[^'\n]*'|\"[^\"\n]*\"|[^\s'\",;&|)\]}]+)"
)
_LINE = re.compile(
    r"(?P<before>(?:^|[{,\n])[ \t-]*(?P<key>[A-Za-z0-9_.-]{1,200})[ \t]{0,9}[:=][ \t]*)"
    r"(?P<secret>\$\{[^}\n]{1,200}\}|'[^'\n]*'|\"[^\"\n]*\"|[^\s'\",}{\[][^\n,}]*)"
)
_HEADER = re.compile(
    r"(?P<before>\b(?:Bearer|Basic)\s+)(?P<secret>[A-Za-z0-9+/_.=-]{8,})"
    r"|(?P<field>\b(?:X-[A-Za-z-]{0,40}(?:Key|Token)|Api-Key|Set-Cookie|Cookie):[ \t]{0,9})(?P<value>[^\s'\"]{4,})",
    re.IGNORECASE,
)
_FLAG = re.compile(r"(?P<before>(?<!\S)--(?P<key>[A-Za-z0-9-]{1,60}) )(?P<secret>[^\s-][^\s]{3,})")

_known: dict[str, str] = {}
"""Value -> what stands for it."""
_search: re.Pattern[str] | None = None


def is_secret_key(key: str) -> bool:
    """Whether the value under a config key, or of an environment variable, is a secret by its name.

    What stands under `columns` is the name of a column, whatever the column is called.
    """
    above, _, last = key.replace("/", ".").rpartition(".")
    if above.rpartition(".")[2] == "columns":
        return False
    last = _CAMEL.sub("_", last).replace("-", "_").lower()
    return _SECRET_NAME.search(last) is not None and not _OTHER_TOKENS.search(last)


def mask(text: str, *, pairs: bool = True) -> str:
    """The text with every secret replaced. Every line, file, tracker and message passes here.

    `pairs`: whether `name=value` is looked for too, which has no meaning in a page or in YAML.
    """
    if _search is not None:
        text = _search.sub(lambda found: _known[found[0]], text)
    text = _SHAPE.sub(MASK, text)
    if "://" in text:
        if "@" in text:
            text = _LONE_USER.sub(_hidden, _USERINFO.sub(_hidden, text))
        text = _QUERY.sub(_hidden_query, text)
    if pairs and _NAMED.search(text):
        text = _LINE.sub(_hidden_if_named, _PAIR.sub(_hidden_if_named, text))
        text = _FLAG.sub(_hidden_if_named, _HEADER.sub(_hidden_header, text))
    return text


_NAMED = re.compile(r"token|secret|pass|pwd|key|credential|bearer|basic|auth|webhook|cookie|connection", re.IGNORECASE)
"""What every name of a secret holds: a quick look before the slow one."""


def masked_texts(value: Any) -> Any:
    """Containers with every text in them masked by what it is, whatever its key."""
    if isinstance(value, Mapping):
        return {k: masked_texts(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked_texts(v) for v in value]
    return mask(value) if isinstance(value, str) else value


def masked(value: Any, key: str = "") -> Any:
    """The same, and whatever stands under the name of a secret: of a config."""
    if isinstance(value, Mapping):
        return {k: masked(v, key if is_secret_key(key) else f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked(v, key) for v in value]
    if isinstance(value, str):
        return MASK if _is_secret(key, value) else mask(value)
    # A number under such a name is one as well; a switch or a count named like one is told apart by its type.
    return MASK if isinstance(value, int | float) and not isinstance(value, bool) and is_secret_key(key) else value


def _is_secret(key: str, value: str) -> bool:
    """Whether a text under this key is one: no interpolation, and no token of a vocabulary."""
    named = value != "" and is_secret_key(key) and not is_interpolation(value)
    return named and not _SPECIAL.fullmatch(value)


def is_interpolation(value: str) -> bool:
    """Whether a text is one `${...}` and nothing else: where a secret is, and not the secret."""
    return value.startswith("${") and value.endswith("}") and value.count("${") == value.count("}")


def is_masked(value: str) -> bool:
    """Whether a config value is `***`, or a URL with `***` in it: written by us, and of no use as a value."""
    return value == MASK or re.search(r"://[^\s@]*\*\*\*@|[?&][\w.-]+=\*\*\*", value) is not None


def remember(value: Any, instead: str = MASK) -> None:
    """Have `mask` replace this value wherever it comes up."""
    text = str(value)
    if isinstance(value, bool) or value is None or len(text) < _SHORTEST or text == instead or text in _known:
        return
    for form in _forms(text):
        _known.setdefault(form, instead)
    _index()


def _forms(text: str) -> Iterator[str]:
    """How a text comes up in others: as it is, in a URL, in JSON and in Python, and each line of several."""
    yield text
    yield from (quote(text), quote(text, safe=""), quote_plus(text), repr(text)[1:-1])
    yield from (json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
    yield from (line.strip() for line in text.splitlines() if len(line.strip()) >= _SHORTEST_OF_ENVIRONMENT)


def remember_keys(tree: Any, key: str = "") -> None:
    """Remember every value in a config that stands under the name of a secret, and the passwords in its URLs."""
    if isinstance(tree, Mapping):
        for k, v in tree.items():
            remember_keys(v, f"{key}.{k}")
    elif isinstance(tree, list | tuple):
        for v in tree:
            remember_keys(v, key)
    elif isinstance(tree, int | float) and is_secret_key(key):
        remember(tree)
    elif isinstance(tree, str):
        if _is_secret(key, tree) and MASK not in tree:
            remember(tree)
        queried = [found for found in _QUERY.finditer(tree) if "://" in tree and _is_query_secret(found["key"])]
        for found in (*_USERINFO.finditer(tree), *queried):
            if MASK not in found["secret"] and "${" not in found["secret"]:
                remember(found["secret"])


def remember_typed(arguments: Iterable[str]) -> None:
    """Remember the secrets among `key=value` arguments, before anything can go wrong with them."""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals:
            remember_keys(value.strip("'\""), key.lstrip("+~-"))


def remember_environment() -> None:
    """Remember the values of environment variables that are secrets by their names."""
    for name, value in os.environ.items():
        # The name of a file with a secret in it is none.
        if len(value) >= _SHORTEST_OF_ENVIRONMENT and is_secret_key(name) and not os.path.exists(value):
            remember(value)


def remember_read(name: str, value: str) -> None:
    """Remember what an interpolation read from the environment. The name of a file that is there is no secret."""
    if not value.replace(".", "").isdigit() and not os.path.exists(value):
        remember(value, f"${{oc.env:{name}}}")


def forget() -> None:
    """Forget all values: another command begins in this process."""
    _known.clear()
    _index()


@contextmanager
def masked_output() -> Iterator[None]:
    """Within, what is printed to stdout and stderr is masked, whoever prints it: tracebacks and libraries too."""
    before = sys.stdout, sys.stderr
    remember_environment()
    sys.stdout, sys.stderr = _Masked(before[0]), _Masked(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Masked:
    """A text stream whose writes are masked; all else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream: TextIO = stream

    def write(self, text: str) -> int:
        self._stream.write(mask(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _hidden(found: re.Match[str]) -> str:
    # What an interpolation will read is not here yet.
    return found[0] if "${" in found["secret"] else found["before"] + MASK


def _hidden_header(found: re.Match[str]) -> str:
    return _hidden(found) if found["before"] else found["field"] + MASK


def _is_query_secret(key: str) -> bool:
    return is_secret_key(key) or _SIGNATURE.search(key) is not None


def _hidden_query(found: re.Match[str]) -> str:
    return _hidden(found) if _is_query_secret(found["key"]) else found[0]


def _hidden_if_named(found: re.Match[str]) -> str:
    secret = found["secret"].strip("'\"")
    if MASK in secret or not _is_secret(found["key"], secret):
        return found[0]
    if secret.lower() in ("null", "none", "true", "false", "auto"):
        return found[0]
    quote = found["secret"][0] if found["secret"][0] in "'\"" else ""
    return f"{found['before']}{quote}{MASK}{quote}"


def _index() -> None:
    global _search  # noqa: PLW0603  one process has one set of secrets
    longest_first = sorted(_known, key=len, reverse=True)
    _search = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
