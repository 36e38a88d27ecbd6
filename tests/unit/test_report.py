"""report.html: self-contained, well-formed, everything of the run escaped, and no shape of a run that breaks it."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneforge.artifacts.curves import MAX_POINTS, Axis, Point, downsample, more_charts, moving_average
from tuneforge.artifacts.figures import number
from tuneforge.artifacts.report import MAX_TEXT, write_report

VOID = {"meta", "link", "br", "input"}
HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" https://evil.example/x.js"


class Page(HTMLParser):
    """Fails on tags that do not nest; keeps tags, attributes, text and the inside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.code: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.code if self.open and self.open[-1] in ("script", "style") else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def paths(self, css: str) -> list[str]:
        found, classes = [], ""
        for tag, name, value in self.attributes:
            classes = value if (tag, name) == ("path", "class") else classes
            found += [value] if (tag, name) == ("path", "d") and classes == css else []
        return found


EVENT = {"step": 12, "code": "not-finite", "did": "skipped the step", "message": "loss of nan", "fix": "look at it"}


def train_line(step: int, loss: float = 2.0) -> dict[str, float]:
    return {
        "step": step,
        "train/loss": loss,
        "train/grad_norm": 0.4,
        "train/lr": 2e-4,
        "train/tokens_per_s": 5312.0,
        "train/supervised_fraction": 0.31,
        "epoch": step / 100,
    }


def eval_line(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "eval/loss": loss, "eval/perplexity": math.exp(loss), "epoch": step / 100}


def lines(steps: int) -> list[dict[str, float]]:
    made = [eval_line(0, 3.4)]
    for step in range(1, steps + 1):
        made.append(train_line(step, 3.0 - step / steps + 0.1 * math.sin(step)))
        made += [eval_line(step, 3.4 - step / steps)] if step % max(1, steps // 4) == 0 else []
    return made


def record() -> dict[str, Any]:
    sample = {"prompt": "What does dedent do?", "wanted": "It removes common whitespace."}
    return {
        "status": "done",
        "exit": 0,
        "started": "2026-11-20T14:05:11+00:00",
        "written": "2026-11-20T15:31:52+00:00",
        "identity": "9f3c" * 16,
        "choices": {
            "model": "tiny",
            "data": "pydoc",
            "method": "lora",
            "hardware": "rtx4090",
            "task_recipe": "instruct",
        },
        "overrides": ["method=lora", "optim.lr=1e-3", "data.path=my rows.jsonl"],
        "base_model": "bundled:tiny",
        "method": "lora",
        "data": {"name": "pydoc", "rows": 8892, "sha256": "4be1" * 16, "train_documents": 8000, "train_rows": 1600},
        "parameters": {"total": 3_400_000, "trainable": 34_000},
        "settled": {
            "precision": "bf16-mixed",
            "per_device": 3,
            "num_steps": 100,
            "documents_per_step": 31.7,
            "label_tokens_per_step": 153.1,
        },
        "hardware": {
            "profile": {"name": "rtx4090", "kind": "cuda", "vram_gb": 24.0, "precisions": ["bf16", "fp16"]},
            "present": {"device": "cpu", "name": "CPU, 2 cores", "memory_bytes": 25_233_121_280},
        },
        "metrics": {"before": {"eval/loss": 3.4, "eval/perplexity": 29.96}, "after": {"eval/loss": 2.4}},
        "samples": {
            "before": [{**sample, "answer": "are are are"}],
            "after": [{**sample, "answer": "It removes common whitespace."}],
        },
        "guards": {"nan_guard": {"action": "repair", "count": 1, "events": [EVENT]}, "data_guard": {"events": []}},
        "gates": [
            {"name": "eval loss fell", "passed": True, "value": "3.4000 -> 2.4000", "wanted": "a lower loss"},
            {"name": "samples to read", "passed": False, "value": "0", "wanted": "samples.num=3"},
        ],
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "git": "0123abcd+",
    }


CONFIG = {
    "seed": 17,
    "data": {"path": "my rows.jsonl", "packing": True},
    "optim": {"lr": 1e-3, "betas": [0.9, 0.999]},
    "method": {"lr": {"sft": 2e-4}},
    "task_recipe": {"objective": "sft"},
    "batch": {"effective": 32, "effective_tokens": None},
    "trainer": {"gradient_clip_val": 0.3, "max_steps": 100, "max_epochs": 3.0},
}
PROVENANCE = {
    "seed": {"where": "conf/config.yaml:19", "expression": ""},
    "optim.lr": {"where": "command line: optim.lr=1e-3", "expression": ""},
    "trainer.gradient_clip_val": {"where": "conf/config.yaml:30", "expression": "${method.clip}"},
    "method.lr": {"where": "conf/method/lora.yaml:10", "expression": ""},
}


def render(
    root: Path,
    logged: list[dict[str, float]] | None = None,
    *,
    config: dict[str, Any] = CONFIG,
    without: tuple[str, ...] = (),
    **changes: Any,
) -> str:
    """The page of a run whose record is changed in the keys given."""
    files = {
        "run.json": json.dumps(record() | changes),
        "config.yaml": yaml.safe_dump(config, sort_keys=False),
        "provenance.json": json.dumps(PROVENANCE),
        "metrics.jsonl": "".join(json.dumps(m) + "\n" for m in (lines(100) if logged is None else logged)),
    }
    for name, text in files.items():
        if name not in without:
            (root / name).write_text(text, encoding="utf-8")
    report = write_report(root)
    assert report == root / "report.html"
    assert [p.name for p in root.iterdir() if p.name.startswith(".")] == []
    return report.read_text(encoding="utf-8")


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    text = render(tmp_path)
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text
    references = [(tag, value) for tag, name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert references == [("link", "data:,")]
    assert any(value.startswith("default-src 'none'") for _, name, value in page.attributes if name == "content")


def test_the_page_holds_the_numbers_in_order(tmp_path: Path) -> None:
    text = Page(render(tmp_path)).text
    wanted = [
        *("done", "ended 1 h 26 min later", "lora on bundled:tiny", "instruct", "pydoc", "my rows.jsonl", "rtx4090"),
        *("3.4000", "2.4000", "down 29.4 %", "5,312 supervised tokens a second"),
        *("29.960", "?", "100 of 100", "15,310", "34,000", "1 % of 3,400,000"),
        *("Loss", "nats per supervised token", "exponential moving average", "3.0", "untouched base 3.4000"),
        *("lowest 2.4000 at step 100", "Learning rate", "2e-4", "Gradient norm", "clipped to 0.3", "Speed", "4,000"),
        *("train/supervised_fraction", "The 5 evaluations"),
        *("Quality gates", "pass", "3.4000 -> 2.4000", "fail", "samples to read", "wanted: samples.num=3"),
        *("What the guards saw", "12", "nan_guard", "skipped the step", "loss of nan", "look at it", "not-finite"),
        *("What does dedent do?", "are are are", "as wanted", "It removes common whitespace."),
        *("8,892", "4be1", "8,000", "mean documents a row", "5"),
        *("profile", "present", "CPU, 2 cores", "24", "23.5", "bf16, fp16"),
        *("precision", "compute type", "trainer.max_steps=100", "documents_per_step", "batch.effective=32", "31.7"),
        "python -m tuneforge method=lora optim.lr=1e-3 'data.path=my rows.jsonl'",
        *("0123abcd", "uncommitted", "2.13.0"),
        *("optim.lr", "0.001", "command line: optim.lr=1e-3", "optim.betas", "[0.9, 0.999]"),
        *("method.lr.sft", "0.0002", "conf/method/lora.yaml:10", "conf/config.yaml:30", "${method.clip}"),
    ]
    at = 0
    for piece in wanted:
        found = text.find(piece, at)
        assert found >= 0, f"{piece!r} is not on the page after {text[max(0, at - 80) : at]!r}"
        at = found + len(piece)
    assert "trainer.max_epochs=3.0" not in text  # max_steps wins, and the page says what decided


def test_all_text_of_the_run_is_escaped(tmp_path: Path) -> None:
    clean = Page(render(tmp_path))
    sample = {"prompt": HOSTILE, "wanted": HOSTILE, "answer": HOSTILE}
    hostile = Page(
        render(
            tmp_path,
            [{**m, f"guard/{HOSTILE}": float(m["step"])} for m in lines(100)],
            config={"data": {"path": HOSTILE}, HOSTILE: {"a": HOSTILE}},
            status=HOSTILE,
            base_model=HOSTILE,
            method=HOSTILE,
            git=HOSTILE,
            overrides=[HOSTILE],
            choices={**record()["choices"], HOSTILE: HOSTILE, "task_recipe": HOSTILE, "hardware": HOSTILE},
            data={**record()["data"], "name": HOSTILE, HOSTILE: HOSTILE},
            settled={**record()["settled"], HOSTILE: HOSTILE},
            hardware={**record()["hardware"], "present": {"device": HOSTILE, "name": HOSTILE, "memory_bytes": 1}},
            versions={HOSTILE: HOSTILE},
            samples={"before": [sample], "after": [sample]},
        )
    )
    assert hostile.text.count("<img src=x onerror=alert(1)>") > 20
    assert hostile.tags["script"] == clean.tags["script"] + 1  # the readings of one more chart
    assert hostile.tags["img"] == 0
    assert not [a for a in hostile.attributes if a[1].startswith("on")]
    assert not [code for code in hostile.code if "<" in code and "alert" in code]
    assert not [
        value for _, name, value in hostile.attributes if "evil" in value and name not in ("aria-label", "class")
    ]


def test_any_guard_can_have_tiles_and_tables_of_its_own(tmp_path: Path) -> None:
    tile = {"name": "Rooms searched", "value": HOSTILE, "beside": "twice"}
    open_table = {"title": "What was there", "columns": ["room", "coins"], "rows": [["attic", HOSTILE]]}
    shown = [open_table | {"numbers": ["coins"], "folded": False}]
    shown += [{"title": "Letters", "columns": ["from", "text"], "rows": [["me", "x" * 30_000]], "numbers": []}]
    shown[1]["folded"] = True
    guard = {"action": "warn", "count": 0, "events": [], "tiles": [tile], "tables": shown}
    page = Page(render(tmp_path, guards={"house_guard": guard}))
    assert page.tags["img"] == 0
    at = [page.text.index(t) for t in ("Rooms searched", "twice", "What was there", "attic", "Letters", "10,000 more")]
    assert at == sorted(at)
    assert page.text.count(HOSTILE) == 2
    assert ("td", "data-label", "coins") in page.attributes


def test_values_that_are_not_finite_are_gaps_and_counted(tmp_path: Path) -> None:
    metrics = [train_line(s, math.nan if s in (4, 5) else math.inf if s == 9 else 2.0 + s / 10) for s in range(1, 11)]
    text = render(tmp_path, metrics)
    page = Page(text)
    assert "3 steps logged a value that is NaN or infinite: steps 4, 5, 9." in page.text
    assert page.text.count("3 values not finite (NaN or infinite), shown as gaps.") == 1
    (stroke,) = page.paths("main")[:1]
    assert [len(run.split("L")) for run in stroke.split("M")[1:]] == [3, 3]  # steps 1-3 and 6-8
    dots = page.paths("main dots")[0]
    assert dots.count("h0") == 7  # step 10 alone, too
    assert not re.search(r"\bnan\b|\binf\b", " ".join(value for _, _, value in page.attributes))
    assert "NaN" not in "".join(c for c in page.code if c.startswith('{"last"'))


def test_a_value_alone_between_two_gaps_is_a_dot(tmp_path: Path) -> None:
    page = Page(render(tmp_path, [train_line(s, math.nan if s in (19, 21) else 2.0) for s in range(1, 41)]))
    assert [path.count("h0") for path in page.paths("raw dots")] == [1]
    assert [path.count("M") for path in page.paths("raw")] == [2]


def test_a_run_without_one_finite_loss_still_has_its_chart(tmp_path: Path) -> None:
    measured = {"before": {"eval/loss": 3.4}, "after": {"eval/loss": math.nan, "eval/perplexity": math.inf}}
    page = Page(render(tmp_path, [train_line(s, math.nan) for s in range(1, 31)], metrics=measured))
    assert "Eval loss 3.4000 \u2192 not finite" in page.text
    assert "30 values not finite" in page.text


@pytest.mark.parametrize("count", [0, 1, 7, 1000, 1001, 1003, 4999, 123_457])
@pytest.mark.parametrize("limit", [1000, 50])
def test_downsampling_is_bounded_and_loses_no_extreme(count: int, limit: int) -> None:
    points: list[Point] = [(float(i), math.sin(i) + (50.0 if i == count // 2 else 0.0)) for i in range(count)]
    kept = downsample(points, limit)
    assert len(kept) <= limit
    assert len(kept) >= min(count, limit // 2)
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)
    assert set(kept) <= set(points)
    values = [v for _, v in points if v is not None]
    if values:
        assert {min(values), max(values)} <= {v for _, v in kept}


def test_downsampling_keeps_gaps() -> None:
    points: list[Point] = [(float(i), None if 4000 <= i < 4010 else float(i % 7)) for i in range(10_000)]
    kept = downsample(points, 1000)
    gap = [s for s, v in kept if v is None]
    assert gap
    assert min(gap) >= 4000
    assert max(gap) < 4010
    assert len([v for _, v in kept if v is not None]) <= 1000


def test_thousands_of_steps_make_a_small_page(tmp_path: Path) -> None:
    text = render(tmp_path, lines(9000))
    page = Page(text)
    strokes = [value for _, name, value in page.attributes if name == "d"]
    assert len(strokes) >= 6
    assert max(len(s.split("L")) for s in strokes) <= MAX_POINTS
    assert max(len(json.loads(c)["lines"][0]["points"]) for c in page.code if c.startswith('{"last"')) <= MAX_POINTS
    assert len(text) < 500_000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"without": ("config.yaml",)}, "The run folder has no config.yaml."),
        ({"without": ("provenance.json",)}, "batch.effective"),
        ({"without": ("metrics.jsonl",)}, "metrics.jsonl holds nothing that can be drawn."),
        ({"without": ("config.yaml", "provenance.json", "metrics.jsonl")}, "no training speed was logged"),
        ({"logged": [train_line(s) for s in range(1, 30)]}, "The run logged no evaluation."),
        ({"logged": [train_line(1)]}, "1 of 100"),
        ({"logged": [eval_line(0, 3.4)]}, "The 1 evaluation as a table"),
        ({"logged": [{**train_line(s), "train/lr": 0.0} for s in range(30)]}, "Learning rate"),
        ({"logged": [train_line(s, 1e30 if s == 5 else 1e-8) for s in range(30)]}, "(log scale)"),
        ({"logged": [train_line(s, 1 + 1e-16 * s) for s in range(30)]}, "Loss"),
        ({"samples": {"before": [], "after": []}}, "No sample was answered in this run."),
        ({"samples": {"before": record()["samples"]["before"], "after": []}}, "are are are"),
        ({"parameters": {}, "git": None}, "outside of a repository"),
        ({"status": "interrupted", "exit": 143}, "exit 143"),
        ({"overrides": []}, "python -m tuneforge"),
        ({"config": {}}, "no config.yaml"),
        ({"config": {"a": "x" * 50_000}}, f"({50_000 - MAX_TEXT:,} more characters in the run's files)"),
    ],
)
def test_every_shape_of_a_run_has_a_page(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in Page(render(tmp_path, **changes)).text


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"eval/loss": 2.0}, {"eval/loss": 2.5}, "up 25.0 %"),
        ({"eval/loss": 2.0}, {"eval/loss": 2.0}, "unchanged"),
        ({"eval/loss": 2.0}, {}, "none was measured after training"),
        ({}, {"eval/loss": 2.0}, "not measured \u2192 2.0000"),
        ({}, {}, "No eval loss was measured"),
        ({"eval/loss": 0.0}, {"eval/loss": 2.0}, "0.0000 \u2192 2.0000"),
    ],
)
def test_the_verdict(tmp_path: Path, before: dict[str, float], after: dict[str, float], said: str) -> None:
    assert said in Page(render(tmp_path, metrics={"before": before, "after": after})).text


def test_a_line_cut_short_by_a_kill_ends_the_curves(tmp_path: Path) -> None:
    render(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(train_line(1)) + "\n" + json.dumps(train_line(2))[:30])
    assert "1 of 100" in Page(write_report(tmp_path).read_text(encoding="utf-8")).text


def test_the_moving_average_is_the_weighted_mean_of_what_was_seen() -> None:
    values = [3.0, 1.0, None, 4.0]
    smooth = [v for _, v in moving_average([(float(i), v) for i, v in enumerate(values)], span=3)]
    assert smooth[0] == 3.0
    assert smooth[1] == pytest.approx((1.0 + 0.5 * 3.0) / 1.5)
    assert smooth[2] is None
    assert smooth[3] == pytest.approx((4.0 + 0.5 * 1.0 + 0.25 * 3.0) / 1.75)


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [
        *(
            (0, 1, False),
            (0, 420, False),
            (1.23, 1.2301, False),
            (0.11, 0.97, False),
            (-5e-6, 2e-4, False),
            (0, 9e6, False),
            (-3, 7, False),
        ),
        *((0.01, 0.9, True), (1e-8, 1e30, True), (0.3, 10, True)),
    ],
)
def test_ticks_are_few_distinct_and_inside(low: float, high: float, log: bool) -> None:
    ticks = Axis(low, high, log).ticks(5)
    assert 1 <= len(ticks) <= 8
    assert len(ticks) >= (1 if log else 4)
    assert all(0 <= at <= 100 for at, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks)
    for at, label in ticks:
        value = float(label.replace(",", ""))
        assert Axis(low, high, log).share(value) * 100 == pytest.approx(at, abs=0.01) if value else low <= 0


@pytest.mark.parametrize(("low", "high"), [(0.11, 0.97), (0.0976, 0.986), (0.45, 1.08), (2.1, 2.9), (-0.4, 0.4)])
def test_a_low_chart_has_two_ticks_that_tell_apart(low: float, high: float) -> None:
    labels = [label for _, label in Axis(low, high).ticks(3)]
    assert len(set(labels)) >= 2
    assert [round(float(label), 9) for label in labels] == sorted({round(float(label), 9) for label in labels})


def test_only_an_axis_of_things_that_are_counted_has_whole_ticks() -> None:
    assert [label for _, label in Axis(0, 3, whole=True).ticks(5)] == ["0", "1", "2", "3"]
    assert len(Axis(0.0, 0.1).ticks(5)) >= 4


def test_what_guards_measured_is_drawn_where_it_changed_and_named_where_it_did_not() -> None:
    metrics = [{"step": step, "train/loss": 1.0, "a/b": float(step), "c/d": 2.0} for step in (1, 2, 3)]
    metrics[2]["e/f"] = float("nan")
    moving, still = more_charts(metrics)
    assert [chart.title for chart in moving] == ["a/b", "e/f"]
    assert still == {"c/d": 2.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0002, "2e-4"), (5312.4, "5,312"), (12_874, "12,874"), (1.38621, "1.386"), (0, "0"), (0.0, "0")),
        *(
            (math.nan, "not finite"),
            (True, "true"),
            (None, "null"),
            ("x", "x"),
            (["a", 2.5], "a, 2.5"),
            (-1e-9, "-1e-9"),
        ),
    ],
)
def test_numbers_read_well(value: Any, text: str) -> None:
    assert number(value) == text


def test_the_module_imports_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "lightning", "peft", "datasets")
    code = f"import sys, tuneforge.artifacts.report; sys.exit([m for m in {heavy} if m in sys.modules] or 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
