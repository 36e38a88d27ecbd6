"""No secret leaves the process: whatever door it comes through, no file, line, tracker or command line holds it."""

import json
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from tuneforge import masking
from tuneforge.compose import _Resolution, compose, reread
from tuneforge.errors import TuneforgeError
from tuneforge.interpolation import replaced
from tuneforge.masking import is_secret_key, mask, masked

# Made up, in the formats that the vendors document.
SHAPES = {
    "hugging face": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "openai": "sk-proj-AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "anthropic": "sk-ant-api03-AbCdEfGhIjKlMnOpQrStUvWxYz",
    "github": "ghp_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "github fine-grained": "github_pat_11ABCDEFG0AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "gitlab": "glpat-AbCdEfGhIjKlMnOpQrSt",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "google": "AIza" + "SyAbCdEfGhIjKlMnOpQrStUvWxYz0123456",
    "slack": "xoxb-123456789012-123456789012-AbCdEfGhIjKlMnOp",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "stripe": "sk_" + "live_AbCdEfGhIjKlMnOpQrStUvWx",
    "groq": "gsk_" + "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789AbCdEfGhIj",
    "nvidia": "nvapi-" + "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "docker": "dckr_pat_" + "AbCdEfGhIjKlMnOpQrStUvWxYz",
    "vault": "hvs." + "AbCdEfGhIjKlMnOpQrStUvWxYz",
    "langsmith": "lsv2_pt_" + "0123456789abcdef0123456789abcdef_0123456789",
    "telegram": "110201543:AA" + "HdqTcvCH1vGWJxfSeofSAs0K5PALDsaw1",
    "shopify": "shpat_" + "0123456789abcdef0123456789abcdef",
    "npm": "npm_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
}


@pytest.fixture(autouse=True)
def nothing_remembered():
    masking.forget()
    yield
    masking.forget()


@pytest.mark.parametrize("vendor", SHAPES)
def test_tokens_of_vendors_are_masked_in_any_text(vendor):
    shown = mask(f"HTTPError: 401 for {SHAPES[vendor]} at row 3")
    assert shown == "HTTPError: 401 for *** at row 3"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pass@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p/a?s@s@host/db", "postgresql://me:***@host/db"),
        ("https://secret@github.com/a/b", "https://***@github.com/a/b"),
        ("https://h/f?token=abc&page=2", "https://h/f?token=***&page=2"),
        ("https://h/f?X-Amz-Signature=abc&X-Amz-Date=1", "https://h/f?X-Amz-Signature=***&X-Amz-Date=1"),
        ("a.api_key=abc b=2", "a.api_key=*** b=2"),
        ("{'api_key': 'a b c', 'b': 1}", "{'api_key': '***', 'b': 1}"),
        ("  password: abc", "  password: ***"),
        ("Authorization: Bearer abcdefghij", "Authorization: ***"),
        ("sent X-Api-Key: abcdef to host", "sent X-Api-Key: *** to host"),
        ("postgresql://me@server:pass@host/db", "postgresql://me@server:***@host/db"),
        ("AccountName=x;AccountKey=abc==;Suffix=core", "AccountName=x;AccountKey=***;Suffix=core"),
        ("run --api-key abcdef --steps 3", "run --api-key *** --steps 3"),
        ("password = hunter2", "password = ***"),
    ],
)  # fmt: skip
def test_secrets_are_found_in_text(text, shown):
    assert mask(text) == shown
    assert mask(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "ssh://git@github.com/a/b",
        "http://127.0.0.1:8080/a@b",
        "eos_token=</s>",
        "postgresql://me:${oc.env:PW}@host/db",
        "a.api_key=${oc.env:KEY}",
        "data.max_length=128",
        "the token: 3 of 5",
        "git+ssh://git@github.com:org/repo.git@main",
        "data.columns.token=tok",
        "sort_key=abc --pad-token <pad> key=value",
        "{'token': '<|user|>', 'signature': '(a, b)'}",
        "sk-learn-and-more-things-to-come",
    ],
)
def test_what_is_no_secret_stays(text):
    assert mask(text) == text


def test_names_of_secrets_are_told_from_tokens_of_a_vocabulary():
    for key in (
        "api_key",
        "logger.x.apiKey",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "db_password",
        "client-secret",
        "token",
        "PGPASSWORD",
        "DB_PASS",
        "openai_key",
        "access_tokens",
        "session_cookie",
    ):
        assert is_secret_key(key), key
    tokens = ("eos_token", "pad_token", "max_new_tokens", "add_tokens", "label_tokens_per_step", "think_token")
    for key in (*tokens, "key", "sort_key", "key_column", "public_key", "signature", "forward_pass", "seed"):
        assert not is_secret_key(key), key
    assert masked({"credentials": {"user": "a", "x": [1]}, "eos_token": "</s>", "columns": {"token": "tok"}}) == {
        "credentials": {"user": "***", "x": ["***"]},
        "eos_token": "</s>",
        "columns": {"token": "tok"},
    }


def test_what_is_known_is_found_in_other_spellings():
    """A library quotes a value for a URL, escapes it in JSON, or prints a file line by line."""
    masking.remember('p@ss/w"rd\nsecond line')
    masking.remember_keys({"api_key": 123456789, "url": "https://h/f?sig=kumquat"})
    for text in (
        "p%40ss%2Fw%22rd%0Asecond%20line",
        'p@ss/w\\"rd\\nsecond line',
        "the second line",
        "123456789",
        "kumquat",
    ):
        assert "***" in mask(text), text


@pytest.mark.parametrize("text", ["x.-" * 40_000 + "://key", "eyJ-" * 30_000, "a='" * 30_000 + "key", "key: " * 30_000])
def test_no_text_takes_long_to_mask(text, processor_seconds):
    with processor_seconds(5):
        mask(text)


# ---- a whole run, and a sweep in processes: every byte they leave

PLUGIN = """
import os
from pathlib import Path
from lightning.pytorch import Callback

class Spy(Callback):
    def __init__(self, *, api_key: str, note: str, url: str, read: str, crash: bool = False) -> None:
        self.api_key, self.crash = api_key, crash
        assert "*" not in api_key + note + url + read

    def on_fit_start(self, trainer, pl_module) -> None:
        seen = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in ("self", os.getppid())]
        with Path(os.environ["CMDLINES"]).open("ab") as file:
            file.write(b"\\n".join(seen))
        if self.crash:
            raise RuntimeError(f"503 of the server, for the key {self.api_key}")
"""
SECRETS = {
    "override": "kumquat-override-1",
    "option file": "kumquat-file-22",
    "environment": "kumquat-environment-333",
    "url": "kumquat-url-4444",
    "query": "kumquat-query-55555",
    "plugin default": SHAPES["slack"],
    "row": SHAPES["github"],
}


@pytest.fixture
def planted(tmp_path, monkeypatch, model_folders):
    """A plugin, an option file, rows and an environment with a secret in each, and the command that uses them all."""
    # Python keeps a package that it has imported: each test has one of its own.
    name = f"spy_{tmp_path.name}"
    package = tmp_path / "drop" / name / name
    (package / "conf" / "callbacks").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "watch.py").write_text(PLUGIN)
    (package / "conf" / "callbacks" / "spied.yaml").write_text(
        "# python -m tuneforge callbacks=spied\n"
        f"spy:\n  _target_: {name}.watch.Spy\n  note: {SECRETS['plugin default']}\n"
        "  api_key: none\n  url: none\n  read: none\n"
    )
    (package.parent / "pyproject.toml").write_text(
        f'[project]\nname = "spy"\nversion = "1"\n[project.entry-points."tuneforge.plugins"]\nspy = "{name}"\n'
    )
    options = tmp_path / "options" / "experiment"
    options.mkdir(parents=True)
    (options / "mine.yaml").write_text(
        "# @package _global_\n"
        f"callbacks:\n  spy:\n    api_key: {SECRETS['option file']}\n"
        f"    url: https://me:{SECRETS['url']}@host/x?token={SECRETS['query']}\n"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"{i} is {SECRETS['row']}", "completion": f"yes {i}"}) + "\n" for i in range(24))
    )
    monkeypatch.setenv("TUNEFORGE_PLUGINS", "spy")
    monkeypatch.setenv("TUNEFORGE_PLUGIN_PATH", str(tmp_path / "drop"))
    monkeypatch.setenv("CMDLINES", str(tmp_path / "cmdlines"))
    monkeypatch.setenv("PLANTED", SECRETS["environment"])
    monkeypatch.chdir(tmp_path)
    return [
        *("--config-dir", str(options.parent), "callbacks=spied", "+experiment=mine"),
        *(f"model.path={model_folders['llama']}", "model=hf", "data=file", f"data.path={rows}", "trainer.max_steps=1"),
        *("batch.effective=2", "samples.num=1", "data.split.max_eval_rows=2", "task_recipe.rank=2"),
        "data.max_length=128",
        "callbacks.spy.read=${oc.env:PLANTED}",
    ]  # fmt: skip


def leaks(folder: Path, *texts: str) -> list[tuple[str, str]]:
    """(where, which) of every secret in a file below a folder, in a file's name, or in a text."""
    places = {str(p): p.read_bytes() + p.name.encode() for p in folder.rglob("*") if p.is_file()}
    places |= {f"text {i}": text.encode() for i, text in enumerate(texts)}
    assert len(places) > len(texts)
    return [
        (where, name) for where, held in places.items() for name, secret in SECRETS.items() if secret.encode() in held
    ]


def test_a_run_leaves_no_secret_and_is_repeated_from_the_environment(planted, command, tmp_path, monkeypatch):
    ran = command(*planted, "callbacks.spy.api_key=" + SECRETS["override"], "logger=default")
    assert ran.code == 0, ran.err
    assert leaks(ran.folder, ran.out, ran.err) == []
    assert list((ran.folder / "tensorboard").iterdir())
    config = yaml.safe_load((ran.folder / "config.yaml").read_text())
    assert config["callbacks"]["spy"]["read"] == "${oc.env:PLANTED}"
    assert config["callbacks"]["spy"]["api_key"] == "***"

    shown = command("--from", str(ran.folder), "--cfg", "job")
    assert shown.code == 2
    assert "callbacks.spy.api_key" in shown.err
    again = [f"callbacks.spy.{key}=another" for key in ("api_key", "url", "note")]
    monkeypatch.setenv("PLANTED", "another-environment")
    shown = command("--from", str(ran.folder), "--cfg", "job", *again)
    assert shown.code == 0, shown.err
    assert leaks(ran.folder, shown.out, shown.err) == []
    assert "${oc.env:PLANTED}" in shown.out
    assert "another-environment" not in shown.out

    crashed = command(*planted, "callbacks.spy.api_key=" + SECRETS["override"], "callbacks.spy.crash=true")
    assert crashed.code == 1
    assert "RuntimeError: 503 of the server, for the key ***" in crashed.err
    assert leaks(crashed.folder, crashed.out, crashed.err) == []


def test_a_sweep_in_processes_leaves_no_secret(planted, command, tmp_path):
    """Its trials are children: what they are started with, print and report is looked at too."""
    typed = "callbacks.spy.api_key=" + SECRETS["override"]
    swept = [
        "optim.lr=choice(1e-3)",
        "hydra/launcher=processes",
        "hydra.launcher.workers=1",
        "hydra.sweeper.n_trials=1",
    ]
    root = tmp_path / "sweep"
    ran = command("-m", *planted, typed, *swept, f"hydra.sweep.dir={root}")
    assert ran.code == 0, ran.err
    lines = (tmp_path / "cmdlines").read_bytes().decode()
    assert "tuneforge.study.worker" in lines
    assert leaks(root, ran.out, ran.err, lines) == []
    assert "callbacks.spy.api_key=***" in json.loads((root / "sweep.json").read_text())["fixed"]
    # What the sweep wrote is of no use without the secret, and says so.
    with pytest.raises(TuneforgeError) as refused:
        compose(["+experiment=best"], [root, tmp_path / "options"])
    assert {p.code for p in refused.value.problems} == {"masked-value"}


def test_no_sweep_chooses_between_secrets(planted, refused, tmp_path):
    folder = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    said = refused("-m", *planted, "callbacks.spy.api_key=choice(kumquat-one,kumquat-two)", folder)
    assert "callbacks.spy.api_key: is swept over secrets" in said
    assert "kumquat" not in said
    assert not (tmp_path / "sweep").exists()


def test_no_folder_is_named_after_a_secret(refused, tmp_path):
    swept = ["-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/{SHAPES['openai']}"]
    for typed in ([f"hydra.run.dir={tmp_path}/{SHAPES['slack']}"], swept):
        said = refused(*typed)
        assert "names a folder after a secret" in said
        assert f"leave the secret out of the name: {tmp_path}/***" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argument",
    [
        "callbacks.spy.api_kee={0}",
        "callbacks.spy.url=https://a:{0}@h",
        "optim.password={0}",
        "callbacks.spy.api_key=[{0}",
    ],
)
def test_an_error_repeats_no_secret(planted, refused, argument):
    typed = argument.format("kumquat-typed")
    extra = ["trainer.max_steps=kumquat"] if "url" in argument else []
    said = refused(*planted, typed, *extra)
    assert "kumquat-typed" not in said or "api_kee" in typed


def test_what_an_interpolation_reads_inside_of_a_list_or_for_a_whole_node_is_recorded_as_it_was_written(monkeypatch):
    monkeypatch.setenv("PLANTED", SECRETS["environment"])
    monkeypatch.setenv("NODE", "{a: " + SECRETS["environment"] + "}")
    written = {
        "files": [{"path": "${oc.env:PLANTED}", "other": 1, "inner": [{"x": "a ${oc.env:PLANTED}"}]}, 2],
        "node": "${oc.decode:${oc.env:NODE}}",
        "other": "${keys.files}",
        "plain": [{"y": 1}],
    }
    tree = OmegaConf.create({"keys": written, "last": 1})
    problems = []
    resolution = _Resolution(problems, {})
    resolved = resolution.of(tree)
    assert resolved["keys"]["files"][0]["path"] == SECRETS["environment"]
    recorded = replaced(resolved, resolution.reads)
    assert recorded == {"keys": written, "last": 1}
    # A record from elsewhere may name any path.
    assert reread(recorded, [*resolution.reads, "no.such", "keys.files.path"])[:2] == (resolved, [])
    assert problems == []
