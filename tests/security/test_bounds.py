"""Templates and patterns are programs that come with a model: none of them hangs a run or takes its memory."""

import re
import signal

import pytest

from tuneforge import bounded
from tuneforge.adapters import check_patterns
from tuneforge.bounded import OverBoundsError, matching
from tuneforge.data import file, rendering, template
from tuneforge.data.rendering import apply_template
from tuneforge.errors import TuneforgeError
from tuneforge.plan.shape import ModelShape, Trainable

MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
TEMPLATES = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "multiplied text": "{{ 'a' * 10**11 }}",
    "multiplied text within the memory": "{{ 'a' * 10**7 }}",
    "multiplied list": "{{ [[1] * 10**8] * 1000 }}",
    "power": "{{ 10**100000000 > 3 }}",
    "power of a variable": "{% set n = 10 %}{{ n**(n**8) > 3 }}",
    "padding": "{{ '%099999999999d' % 1 }}",
    "centre": "{{ 'a' | center(10**11) }}",
    "join": "{{ (['a' * 10**6] * 10**6) | join('b') }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "nesting": "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "much output": "{% for i in range(90000) %}" + "a" * 100 + "{% endfor %}",
    "words": "{{ lipsum(n=10**6) }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "import": "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch MARK') }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "mutation": "{% for m in messages %}{{ messages.append(m) }}{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "division": "{{ 1 // 0 }}",
    "index": "{{ messages[9]['role'].x }}",
    "type": "{{ messages + 1 }}",
    "syntax": "{% for %}",
}


@pytest.fixture
def tokenizer(model_folders):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folders["llama"])


@pytest.fixture(autouse=True)
def shorter(monkeypatch):
    """The bounds that a run has, at a tenth: the templates here pass each of them by far."""
    monkeypatch.setattr(bounded, "SECONDS", 0.2)
    monkeypatch.setattr(bounded, "MEMORY", 512 << 20)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_no_template_hangs_or_escapes(canary, tokenizer, processor_seconds, kind):
    tokenizer.chat_template = TEMPLATES[kind].replace("MARK", str(canary.mark))
    with processor_seconds(3), pytest.raises(TuneforgeError) as refused:
        apply_template(tokenizer, MESSAGES, "rows.jsonl:7")
    (problem,) = refused.value.problems
    assert problem.path == "model.chat_template"
    assert "rows.jsonl:7" in problem.message
    assert len(str(problem)) < 2000
    if problem.code == "template-over-bounds":
        assert tokenizer.chat_template[:20] in problem.message


def test_no_template_that_is_slow_each_time_is_rendered_for_ever(canary, tokenizer, processor_seconds, monkeypatch):
    """Each time within the bound: a data set of a million rows would take days."""
    monkeypatch.setattr(rendering, "MOST_SECONDS", 0.1)
    tokenizer.chat_template = "{% for i in range(30) %}{% for j in range(60000) %}{% endfor %}{% endfor %}x"
    with processor_seconds(3), pytest.raises(TuneforgeError, match="seconds of the processor for") as refused:
        all(apply_template(tokenizer, MESSAGES, "rows.jsonl:7") for _ in range(1000))
    assert refused.value.problems[0].code == "template-over-bounds"
    tokenizer.chat_template = template.PLAIN
    assert apply_template(tokenizer, MESSAGES, "x").count("###") == 2


def test_a_template_is_rendered_as_before_when_it_keeps_within_the_bounds(tokenizer):
    tokenizer.chat_template = template.PLAIN
    handler = signal.getsignal(signal.SIGVTALRM)
    assert apply_template(tokenizer, MESSAGES, "x").count("###") == 2
    assert signal.getsignal(signal.SIGVTALRM) is handler
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_a_file_of_any_size_is_no_template(canary, tokenizer, tmp_path):
    for content in (b"\xff\xfe{{ x }}", b"x" * (template.MAX_TEMPLATE + 1)):
        (tmp_path / "t.jinja").write_bytes(content)
        with pytest.raises(TuneforgeError, match=r"cannot be read as UTF-8 text"):
            template.choose_template(tokenizer, str(tmp_path / "t.jinja"))


# ---- patterns

SLOW = ["(a+)+$", "(.*)*x", "(\\w+\\.?)+!", "(.+)+(.+)+(.+)+z", "([a-z.0-9_]*)*!"]
NAMES = [f"model.layers.{i}.self_attn.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa_proj" for i in range(4)]


@pytest.mark.parametrize("pattern", SLOW)
def test_no_pattern_hangs(canary, processor_seconds, pattern):
    with processor_seconds(3), pytest.raises(TuneforgeError) as refused:
        matching(f".*{pattern}", NAMES, "method.target_modules")
    (problem,) = refused.value.problems
    assert (problem.code, problem.path) == ("slow-pattern", "method.target_modules")
    assert repr(pattern)[1:-1] in problem.message


@pytest.mark.parametrize("pattern", ["(", "*q", "(?P<a>x)(?P<a>y)", "a{2,1}", "\\"])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(TuneforgeError) as refused:
        matching(pattern, NAMES, "method.pattern")
    assert refused.value.problems[0].code == "bad-pattern"


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "(a+)+$|.*(a+)+$"},
        {"target_modules": ["q"], "exclude_modules": ".*(a+)+$"},
        {"target_modules": ["q"], "rank_pattern": {"(a+)+": 4}},
        {"target_modules": ["q"], "alpha_pattern": {"(a+)+": 4}},
        {"target_modules": ["q"], "modules_to_save": ["(a+)+"]},
        {"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": "(a+)+"},
    ],
    ids=str,
)
def test_no_pattern_of_an_adapter_hangs(canary, processor_seconds, options):
    from peft import LoraConfig
    from torch import nn

    model = nn.ModuleDict({"a" * 40 + "_proj": nn.Linear(2, 2)})
    with processor_seconds(3), pytest.raises(TuneforgeError) as refused:
        check_patterns(LoraConfig(**options), model, "model.adapter")
    assert (refused.value.problems[0].code, refused.value.problems[0].path) == ("slow-pattern", "model.adapter")


def test_many_patterns_of_an_adapter_do_not_hang_either(canary, processor_seconds, monkeypatch):
    """Each of them within the bound, and all together not."""
    from peft import LoraConfig
    from torch import nn

    monkeypatch.setattr(bounded, "SECONDS", 0.05)
    model = nn.ModuleDict({f"layer{i}": nn.Linear(2, 2) for i in range(500)})
    patterns = {f"{'(a|b)?' * 50}{i}": 4 for i in range(2000)}
    with processor_seconds(3), pytest.raises(TuneforgeError) as refused:
        check_patterns(LoraConfig(target_modules=["q"], rank_pattern=patterns), model, "model.adapter")
    assert (refused.value.problems[0].code, refused.value.problems[0].path) == ("slow-pattern", "model.adapter")


def test_planning_bounds_the_pattern_too(canary, processor_seconds):
    shape = ModelShape.from_hf_config(
        {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9,
         "intermediate_size": 8, "max_position_embeddings": 9}
    )  # fmt: skip
    trained = Trainable.of_method({"name": "lora", "r": 1, "_target_": "tuneforge.methods.lora.Lora",
                                   "target_modules": "([a-z.0-9_]*)*!"})  # fmt: skip
    with processor_seconds(3), pytest.raises(TuneforgeError, match="took more than"):
        trained.linears(shape)


def test_an_alarm_of_others_goes_on(processor_seconds):
    """The bound uses the processor's clock alone: what waits for the wall's (a test's timeout) is not touched."""
    fired = []
    before = signal.signal(signal.SIGALRM, lambda *_: fired.append(True))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(OverBoundsError), bounded.bounded(0.3):
        re.fullmatch("(a+)+$", "a" * 40 + "b")
    signal.signal(signal.SIGALRM, before)
    assert fired


# ---- files


def test_no_compressed_file_takes_all_memory(canary, tmp_path, monkeypatch, processor_seconds):
    """One text of a megabyte, said 4,000 times: 4 GB from a few kilobytes."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    text = arrow.DictionaryArray.from_arrays(arrow.array([0] * 4000, arrow.int32()), arrow.array(["a" * 1_000_000]))
    path = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table({"text": text}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(file, "spare_memory", lambda: 256 << 20)
    with processor_seconds(5), pytest.raises(TuneforgeError) as refused:
        file.file(path=str(path))
    assert (refused.value.problems[0].code, refused.value.problems[0].path) == ("file-too-large", "data.path")


def test_rows_of_nothing_take_no_memory(canary, tmp_path, monkeypatch, processor_seconds):
    """A null takes no bytes in a file, and each row of it some in memory."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(arrow.table({"text": arrow.nulls(3_000_000, arrow.string())}), path)
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(file, "spare_memory", lambda: 256 << 20)
    with processor_seconds(1), pytest.raises(TuneforgeError) as refused:
        file.file(path=str(path))
    assert refused.value.problems[0].code == "file-too-large"


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst", "zip"])
def test_no_other_compressed_file_is_unpacked(canary, tmp_path, suffix):
    path = tmp_path / f"rows.jsonl.{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(TuneforgeError, match="so its format is unknown"):
        file.file(path=str(path))
