"""For the tests of plugins: `check_plugin` is what every plugin must pass, and what `tuneforge plugins check` runs."""

import contextlib
import inspect
import io
import json
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneforge.compat import import_bitsandbytes
from tuneforge.console import quiet_libraries
from tuneforge.errors import EXIT_BUG, Problem, RefusedError, TuneforgeError
from tuneforge.plugins.discovery import CHOICE, PATH, core_options, discover, read_folder
from tuneforge.plugins.inspection import code_troubles
from tuneforge.plugins.inspection import inspect as look_at
from tuneforge.plugins.plugin import Plugin, Trouble

TRAINED = ("method", "task_recipe", "data", "optim", "scheduler", "strategy", "callbacks", "logger")
"""Groups whose options are tried in a run of two steps."""
SHORT = (
    *("trainer.max_steps=2", "data.max_rows=24", "data.split.max_eval_rows=6", "batch.effective=4", "samples.num=0"),
    "trainer.devices=1",
)
TRIED = "check-plugin"
"""The run folder of a trial, under its temporary `output_root`."""


@dataclass
class Outcome:
    """What was checked, and what was found wrong."""

    plugin: Plugin
    passed: list[str] = field(default_factory=list)
    failed: list[Problem] = field(default_factory=list)

    def check(self, what: str, verify: Callable[[], str]) -> bool:
        """Run `verify`, which answers with what is wrong or "", and keep the result."""
        wrong = verify()
        if wrong:
            self.failed.append(Problem("plugin-check-failed", f"{what}: {wrong}"))
        else:
            self.passed.append(what)
        return not wrong


def check_plugin(folder: Path | str, *, train: bool = True) -> list[str]:
    """Check the plugin in `folder`; returns what was checked, a line each.

    It is discovered, shadows nothing, every option composes with the defaults, every target imports and takes its
    options, and with `train` each method, recipe and the like trains two steps on the bundled model, saves and reloads.

    Raises:
        RefusedError: with everything that is wrong.
    """
    quiet_libraries()
    import_bitsandbytes()
    root = Path(folder).resolve()
    plugin = look_at(read_folder(root))
    outcome = Outcome(plugin)
    sound = outcome.check("is found and sound", lambda: _first([*plugin.troubles, *code_troubles(plugin)]))
    if sound and outcome.check("takes no name of tuneforge's", lambda: _shadowed(plugin)):
        with _alone(plugin, root):
            if outcome.check("is seen beside tuneforge", lambda: _seen(plugin)):
                for group, options in plugin.options.items():
                    for option in options:
                        _check_option(outcome, group, option, train=train and group in TRAINED)
    if outcome.failed:
        raise RefusedError.of(outcome.failed)
    return outcome.passed


def _check_option(outcome: Outcome, group: str, option: str, *, train: bool) -> None:
    choice = f"{group}={option}"
    composed = outcome.check(f"{choice} composes with the defaults", lambda: _composes(choice))
    bound = composed and outcome.check(f"{choice}: its targets take their options", lambda: _binds(choice))
    if bound and train:
        outcome.check(f"{choice} trains two steps, saves and reloads", lambda: _trains(choice))


def _first(troubles: list[Trouble]) -> str:
    return f"{troubles[0].cause}; {troubles[0].mend}" if troubles else ""


def _shadowed(plugin: Plugin) -> str:
    core = core_options()
    clashes = [f"{g}={o}" for g, options in plugin.options.items() for o in options if o in core.get(g, ())]
    return f"{', '.join(clashes)} ship with tuneforge; rename them" if clashes else ""


@contextlib.contextmanager
def _alone(plugin: Plugin, root: Path) -> Iterator[None]:
    """Within, this plugin is the only one."""
    before = {name: os.environ.get(name) for name in (CHOICE, PATH)}
    os.environ[PATH] = os.pathsep.join([str(root.parent), *filter(None, [before[PATH]])])
    os.environ[CHOICE] = plugin.name
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _seen(plugin: Plugin) -> str:
    found = discover()
    places = [str(p.origin) for p in found]
    if len(found) != 1:
        return f"several folders hold a plugin {plugin.name!r}: {', '.join(places)}"
    return _first(list(found[0].troubles))


def _needs(choice: str) -> list[str]:
    """Values for what an option leaves to its user, so that it can be composed."""
    from tuneforge.compose import compose

    try:
        compose([choice])
    except TuneforgeError as error:
        paths = [p.path for p in error.problems if p.code == "required-key"]
        return [f"{path}=given" for path in paths] if len(paths) == len(error.problems) else []
    return []


def _composes(choice: str) -> str:
    from tuneforge.compose import compose

    try:
        compose([choice, *_needs(choice)])
    except TuneforgeError as error:
        return "; ".join(map(str, error.problems))
    return ""


def _binds(choice: str) -> str:
    """Every `_target_` of the option imports, and its real signature takes what the config hands it."""
    from tuneforge.compose import compose
    from tuneforge.schema.signature import read_signature
    from tuneforge.targets import load

    composed = compose([choice, *_needs(choice)])
    group = choice.partition("=")[0]
    node = composed.tree[group]
    for one in (node, *(v for v in node.values() if isinstance(v, dict))):
        if "_target_" not in one:
            continue
        signature = read_signature(one["_target_"])
        options = {k: v for k, v in one.items() if k in signature.fields}
        try:
            code = load(group, one["_target_"])
            inspect.signature(code).bind(*[None] * signature.num_objects, **options)
        except (TuneforgeError, TypeError) as error:
            return f"{one['_target_']}: {error}"
    return ""


def _trains(choice: str) -> str:
    """Two steps, and then the result again: it must measure as it did when it was saved."""
    if _needs(choice):
        return ""  # a source or model of the user's own, which is not here
    with tempfile.TemporaryDirectory(prefix="tuneforge-check-") as folder:
        root = Path(folder)
        code, said = _quietly([choice, *SHORT, f"output_root={root}", f"hydra.run.dir={root / TRIED}"])
        if code:
            return f"exit code {code}: {said}"
        record = json.loads((root / TRIED / "run.json").read_text(encoding="utf-8"))
        adapter = root / TRIED / "adapter"
        again = (
            [f"model.adapter={adapter}"] if adapter.is_dir() else ["model=hf", f"model.path={root / TRIED / 'model'}"]
        )
        code, said = _quietly([choice, *SHORT, *again, f"output_root={root}", f"hydra.run.dir={root / 'again'}"])
        if code:
            return f"its result does not load again, exit code {code}: {said}"
        reloaded = json.loads((root / "again" / "run.json").read_text(encoding="utf-8"))
    saved, read = record["metrics"]["after"]["eval/loss"], reloaded["metrics"]["before"]["eval/loss"]
    return "" if abs(saved - read) <= 1e-4 * abs(saved) else f"saved at eval loss {saved:.6f}, reloaded at {read:.6f}"


def _quietly(overrides: list[str]) -> tuple[int, str]:
    """A run in this process; what it says is kept for the case that it fails."""
    from tuneforge.compose import compose
    from tuneforge.console import console
    from tuneforge.train import launch

    said = io.StringIO()
    # `file` would answer with the stdout of the moment: what is kept is that none was set.
    before: Any = console._file
    console.file = said
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = launch(compose(overrides))
    except TuneforgeError as error:
        return error.exit_code, "; ".join(map(str, error.problems))
    except Exception:  # a fault of the plugin's code: its traceback is the answer
        return EXIT_BUG, "\n".join(traceback.format_exc().strip().splitlines()[-8:])
    finally:
        console._file = before
    return code, "\n".join(said.getvalue().strip().splitlines()[-8:])
