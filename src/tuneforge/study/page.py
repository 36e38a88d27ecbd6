"""report.html of a sweep: one self-contained page, without script."""

from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from tuneforge.artifacts.claim import status_of
from tuneforge.artifacts.folder import write_text
from tuneforge.artifacts.report import template
from tuneforge.study import charts

if TYPE_CHECKING:
    from tuneforge.study.answer import Answer


def write_page(answer: "Answer") -> Path:
    """Write the page; returns its path."""
    name = answer.kept.objectives[0]
    lower = answer.kept.directions[0] == "minimize"
    single = len(answer.kept.objectives) == 1
    trials = answer.trials
    columns, tracks = charts.parallel(trials, name, lower=lower)
    page = {
        "root": answer.root.name,
        "kept": answer.kept,
        "status": status_of(answer.root, answer.kept.status),
        "trials": trials,
        "states": {state.name.lower(): answer.count(state) for state in TrialState},
        "steps": answer.steps,
        "best": [(t.number, answer.values(t), answer.command(t)) for t in answer.best],
        "experiment": answer.best_command,
        "importances": answer.importances,
        "edges": list(answer.edges()),
        "history": charts.history(trials, name, lower=lower) if single else None,
        "evaluations": charts.intermediate(trials, name),
        "slices": charts.slices(trials, name),
        "columns": columns,
        "tracks": tracks,
    }
    path = answer.root / "report.html"
    write_text(path, template("sweep.html.j2").render(page))
    return path
