"""report.html: one self-contained page of a run, drawn from the files the run left in its folder.

Nothing is fetched: styles, curves and a little script stand in the page, which reads without the script. Every text of
the run goes through jinja2's escaping, and curves reach the template as numbers.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2

from tuneforge.artifacts.claim import status_of
from tuneforge.artifacts.classes import class_tables
from tuneforge.artifacts.curves import charts, more_charts
from tuneforge.artifacts.figures import mean, number, plain
from tuneforge.artifacts.folder import RunFolder, write_text
from tuneforge.artifacts.kept import METRICS, PAGE, read_config, read_lines, read_provenance, read_record
from tuneforge.interpolation import leaves
from tuneforge.masking import masked_texts
from tuneforge.shell import again, command

MAX_TEXT = 20_000
"""Characters of one cell; the rest stays in the file the cell was read from."""


def write_report(root: Path) -> Path:
    """Write `report.html` of a run folder from the files in it; returns its path.

    Only run.json must be there; a part whose file is missing says so on the page.
    """
    folder = RunFolder(root)
    run = read_record(root, PAGE)
    metrics = [m for m in read_lines(folder.metrics, METRICS) if isinstance(m.get("step"), int | float)]
    settings = leaves(read_config(root, {})) if (root / "config.yaml").is_file() else {}
    origins = read_provenance(root) if (root / "provenance.json").is_file() else {}
    page = {
        "run": run,
        "status": status_of(root, run["status"]),
        "model": _last_part(run["base_model"]),
        "data_file": _last_part(str(settings.get("data.path") or "")),
        "verdict": _verdict(run),
        "facts": _facts(run, metrics),
        "charts": charts(metrics, settings),
        "more_charts": more_charts(metrics),
        "evaluations": [m for m in metrics if "eval/loss" in m],
        "measures": _measures(run),
        "events": sorted(_events(run["guards"]), key=lambda found: found[1]["step"]),
        "tiles": [tile for guard in run["guards"].values() for tile in guard.get("tiles", [])],
        "tables": [table for guard in run["guards"].values() for table in guard.get("tables", [])],
        "classes": class_tables(run),
        "samples": _samples(**run["samples"]),
        "settings": settings,
        "hardware": _hardware(**run["hardware"]),
        "command": command(*again(run["overrides"]), config_dirs=run.get("config_dirs", ())),
        "config": _config_rows(settings, origins),
    }
    write_text(folder.report, template("report.html.j2").render(masked_texts(page)))
    return folder.report


def template(name: str) -> jinja2.Template:
    """A page's template; what it lacks is an error."""
    # StrictUndefined: a key misspelt in the template is our bug, and must not leave a silent hole in the page.
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "plain": plain}
    environment.globals |= {"max_text": MAX_TEXT, "infinity": math.inf}
    return environment.get_template(name)


def _source(name: str) -> str:
    return resources.files("tuneforge.artifacts").joinpath(name).read_text(encoding="utf-8")


# ---- reading


def _last_part(path: str) -> str:
    """A local path's last part; a hub id as it is."""
    return Path(path).name if path.startswith(("/", ".", "~")) else path


def _verdict(run: Mapping[str, Any]) -> dict[str, Any]:
    """Eval loss before and after, and whether that is good news."""
    before, after = (run["metrics"][moment].get("eval/loss") for moment in ("before", "after"))
    known = mean([before]) is not None and mean([after]) is not None
    change = after / before - 1 if known and before else None
    tone = "none" if change is None else "good" if after < before else "bad" if after > before else "same"
    return {"before": before, "after": after, "change": change, "tone": tone}


def _facts(run: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the tiles under the verdict show; None where it was not measured."""
    started, written = (datetime.fromisoformat(run[moment]) for moment in ("started", "written"))
    return {
        "speed": mean([m.get("train/tokens_per_s") for m in metrics]),
        "last_step": max((m["step"] for m in metrics), default=0),
        "epoch": max((m["epoch"] for m in metrics if "epoch" in m), default=None),
        "duration": _duration((written - started).total_seconds()),
        "gaps": sorted({m["step"] for m in metrics for value in m.values() if mean([value]) is None}),
    }


def _measures(run: Mapping[str, Any]) -> list[tuple[str, str, Any, Any]]:
    """Key, words, before and after of all that was measured on the eval split beside its loss."""
    before, after = (run["metrics"][moment] for moment in ("before", "after"))
    keys = [k for k in dict.fromkeys([*before, *after]) if k.startswith("eval/") and k != "eval/loss"]
    return [(k, k.partition("/")[2].replace("_", " "), before.get(k), after.get(k)) for k in keys]


def _events(guards: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each finding with the name of its guard."""
    for name, guard in guards.items():
        yield from ((name, event) for event in guard["events"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


# ---- tables


def _samples(before: list[dict[str, str]], after: list[dict[str, str]]) -> list[dict[str, str]]:
    """One row a prompt; either side may be missing, when a run was interrupted or sampling is off."""
    rows = []
    for untuned, tuned in zip_longest(before, after):
        known = tuned or untuned
        row = {"prompt": known["prompt"], "wanted": known["wanted"]}
        row |= {"before": untuned["answer"] if untuned else "", "after": tuned["answer"] if tuned else ""}
        rows.append(row | {"exact": "yes" if tuned and tuned["answer"].strip() == known["wanted"].strip() else ""})
    return rows


def _hardware(profile: Mapping[str, Any], present: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Fact, the profile's value, the present machine's; what the profile alone knows comes last."""
    rows = [
        ("name", profile["name"], present["name"]),
        ("device", profile["kind"], present["device"]),
        ("memory, GiB", profile["vram_gb"], round(present["memory_bytes"] / 2**30, 1)),
    ]
    alone = {k: v for k, v in profile.items() if k not in ("name", "kind", "vram_gb")}
    return rows + [(k, v, None) for k, v in alone.items() if v not in (None, "", [], {})]


def _config_rows(settings: Mapping[str, Any], origins: Mapping[str, Any]) -> list[dict[str, str]]:
    """Key, value and origin; a key inside a mapping that was set as a whole has that mapping's origin."""
    rows = []
    for path, value in settings.items():
        origin: Mapping[str, Any] = {}
        above = path
        while above and not origin:
            origin, above = origins.get(above, {}), above.rpartition(".")[0]
        where = str(origin.get("where", ""))
        typed = "typed" if where.startswith("command line") else ""
        rows.append({"key": path, "value": plain(value), "where": where, "typed": typed})
        rows[-1]["expression"] = str(origin.get("expression", ""))
    return rows
