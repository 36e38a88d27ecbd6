"""What a config may set of Hydra itself: a list of keys, the same for what is typed and for what stands in a file.

Hydra's own node can set environment variables, change the working directory, add search paths, configure logging with
any class, and call callbacks. None of that is a choice about a run, so all of it is refused.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.override_parser.types import Override

from tuneforge.errors import Problem, TuneforgeError, did_you_mean
from tuneforge.interpolation import leaves

GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler", "hydra/sweeper/pruner")
"""Hydra's groups of which another option may be chosen."""
KEYS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
LAUNCHER_KEYS = tuple(
    f"hydra.launcher.{name}"
    for name in (
        *("workers", "n_jobs", "partition", "timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node"),
        *("mem_gb", "account", "qos", "constraint", "array_parallelism"),
    )
)
"""Options of launchers: how many trials at a time, and what a cluster's queue is asked for. No shell commands."""
SWEEPER = "hydra.sweeper."
_PLAIN = re.compile(r"[\w.,:+=@%-]*")
"""What a launcher's text may hold: it is written into a batch script."""
_INSTEAD = {
    "hydra.callbacks": "a callback of a run is callbacks.NAME (docs/plugins.md)",
    "hydra.job.env_set": "set the variable in the shell: NAME=value python -m tuneforge ...",
    "hydra.job.chdir": "set output_root=DIR: paths are relative to the folder that the command is given in",
    "hydra.searchpath": "name the folder of your option files: --config-dir DIR",
    "hydra.launcher._target_": "choose a launcher: hydra/launcher=processes",
    "hydra.sweeper._target_": "choose a sweeper: hydra/sweeper=optuna",
    "hydra.mode": "add --multirun, or leave it out",
    "hydra.verbose": "TUNEFORGE_DEBUG=1 shows the traceback of an error",
    "hydra.output_subdir": "leave it out: config.yaml and provenance.json are in the run folder",
}


def is_hydra(override: Override) -> bool:
    """Whether it is about Hydra itself."""
    key = override.key_or_group
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def typed_problem(override: Override) -> Problem | None:
    """What is wrong with an override of Hydra's node, or one that moves another node into it."""
    origin = f"command line: {override.input_line}"
    if "hydra" in str(override.package or "").split("."):
        return refused(f"hydra.{override.key_or_group}", origin)
    key = override.key_or_group
    if not is_hydra(override):
        return None
    if key.startswith("hydra/"):
        allowed = key in GROUPS and not override.is_delete()
        return None if allowed else refused(key.replace("/", "."), origin)
    if override.is_delete():
        return refused(key, origin)
    value = None if override.is_sweep_override() else override.value()
    return next(_problems({key: value}, origin), None)


def check_file(data: Mapping[str, Any], package: str, group: str, shown: str) -> None:
    """Refuse an option file that sets more of Hydra than it may, directly or by its defaults list.

    Args:
        data: what the file holds.
        package: where its keys go.
        group: the folder that it is in.
        shown: its name, for messages.

    Raises:
        TuneforgeError: with everything that it may not set.
    """
    inside = "hydra" in package.split(".")
    if inside and (package != group.replace("/", ".") or group not in GROUPS):
        raise TuneforgeError.of([refused(package, shown)])
    problems = list(_default_problems(data.get("defaults"), shown, inside=inside))
    own = {k: v for k, v in data.items() if k != "defaults"}
    problems += _problems({package: own} if inside else {"hydra": own["hydra"]} if "hydra" in own else {}, shown)
    problems += [refused(str(key), shown) for key in own if str(key).startswith("hydra.") and not package]
    if problems:
        raise TuneforgeError.of(problems)


def _default_problems(defaults: Any, shown: str, *, inside: bool) -> Iterator[Problem]:
    """Entries of a defaults list that choose another of Hydra's options, or move a node into Hydra's."""
    for entry in defaults if isinstance(defaults, list) else []:
        for name in entry if isinstance(entry, Mapping) else [entry]:
            words = str(name).replace("override ", "").replace("optional ", "").strip()
            group, _, package = words.partition("@")
            group = group.strip("/")
            moved = "hydra" in package.replace("/", ".").split(".") or (inside and package)
            if moved or (group.partition("/")[0] == "hydra" and group not in GROUPS):
                yield refused(group.replace("/", "."), shown)


def _problems(tree: Mapping[str, Any], origin: str) -> Iterator[Problem]:
    """Leaves that may not be set, by their whole path."""
    for path, value in leaves(tree).items():
        if path in KEYS and isinstance(value, str | int | float | None):
            continue
        if path in LAUNCHER_KEYS:
            if value is not None and (isinstance(value, dict | list) or not _PLAIN.fullmatch(str(value))):
                message = f"must be a number or a plain word, got {str(value)[:60]!r}"
                yield Problem("hydra-key", message, path, origin, "write it without blanks and special characters")
            continue
        # The sweeper's own keys are judged by their schema, and its samplers and pruners where they are made.
        if path.startswith(SWEEPER) and not path.startswith(f"{SWEEPER}_"):
            continue
        yield refused(path, origin)


def refused(path: str, origin: str) -> Problem:
    """The problem of a key of Hydra's that a config may not set."""
    fix = next((text for key, text in _INSTEAD.items() if path == key or path.startswith(f"{key}.")), "")
    known = [*KEYS, *LAUNCHER_KEYS, f"{SWEEPER}n_trials"]
    return Problem(
        "hydra-key", "is Hydra's own, and a config may not set it", path, origin, fix or did_you_mean(path, known)
    )
