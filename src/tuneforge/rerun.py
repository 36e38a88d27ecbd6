"""A run's config again: as it was, or with changes worked out anew.

Overriding a resolved config would not work out again what followed from the changed key. So a run without overrides is
repeated from its resolved config, and one with overrides is recomposed from what was typed then and now.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneforge.artifacts.kept import TYPED, damaged, read_config, read_provenance, read_record
from tuneforge.compose import PLACES, Composed, compose, judge, reread, used_plugins
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.interpolation import leaves, lookup
from tuneforge.masking import MASK
from tuneforge.provenance import Origin
from tuneforge.shell import key_of, setting
from tuneforge.versions import versions

CODE = "model.trust_remote_code"


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a run folder says of its config."""

    root: Path
    tree: dict[str, Any]
    origins: dict[str, Origin]
    record: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Difference:
    """One leaf that two configs disagree about; None stands for a leaf that is not there."""

    path: str
    before: Any
    after: Any
    origin_before: str
    origin_after: str

    def __str__(self) -> str:
        return f"{self.path}: {self.before!r} ({self.origin_before}) -> {self.after!r} ({self.origin_after})"


ABSENT: Any = type("ABSENT", (), {"__repr__": lambda _: "absent"})()


def read_run(root: Path) -> Kept:
    """What a run folder keeps.

    Raises:
        TuneforgeError: it is no run folder, or its files cannot be read.
    """
    missing = [n for n in ("config.yaml", "provenance.json", "run.json") if not (root / n).is_file()]
    if missing:
        what = "there is no such folder" if not root.is_dir() else f"the folder has no {', '.join(missing)}"
        raise TuneforgeError("not-a-run", f"{root}: {what}, so it is not a run", fix="give a folder under output_root")
    record, tree, provenance = read_record(root, TYPED), read_config(root), read_provenance(root)
    try:
        origins = {k: Origin.of_dict(o) for k, o in provenance.items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(
            root / "provenance.json", "is no provenance of a config: an origin of a value is broken"
        ) from error
    return Kept(root, tree, origins, record)


def compose_from(root: Path, overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Composed:
    """The config of the run in `root`, with what follows from `overrides` worked out again.

    Raises:
        TuneforgeError: `root` is no run, or its config is not good any more.
    """
    kept = read_run(root)
    dirs = tuple(dict.fromkeys([*map(Path, kept.record.get("config_dirs", ())), *config_dirs]))
    changes = [o for o in overrides if not _is_place(o)]
    places = [o for o in overrides if _is_place(o)]
    composed = _recomposed(kept, changes, places, dirs) if changes else _repeated(kept, places, dirs)
    if composed.config.model.trust_remote_code and CODE not in map(key_of, overrides):
        raise TuneforgeError(
            "remote-code-of-a-record",
            f"{root} allowed code of {composed.config.model.path} to run, and a folder cannot allow it for you",
            path=CODE,
            fix=f"read that code at {composed.config.model.revision}, then add {CODE}=true; or {CODE}=false",
        )
    return dataclasses.replace(composed, base=root, config_dirs=dirs, notes=tuple(_notes(kept, composed)))


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], origins: tuple[Mapping[str, Origin], Mapping[str, Origin]]
) -> list[Difference]:
    """Every leaf in which two trees differ, by path."""
    from tuneforge.provenance import origin_of

    flat = leaves(before), leaves(after)
    paths = [p for p in sorted({*flat[0], *flat[1]}) if flat[0].get(p, ABSENT) != flat[1].get(p, ABSENT)]
    return [
        Difference(
            p,
            flat[0].get(p, ABSENT),
            flat[1].get(p, ABSENT),
            origin_of(origins[0], p) if p in flat[0] else "not set",
            origin_of(origins[1], p) if p in flat[1] else "not set",
        )
        for p in paths
    ]


def _repeated(kept: Kept, places: list[str], dirs: tuple[Path, ...]) -> Composed:
    """The resolved config as it stands, in a new place."""
    masked = [p for p, v in leaves(kept.tree).items() if isinstance(v, str) and MASK in v]
    if masked:
        raise TuneforgeError.of(
            [
                Problem(
                    "masked-value", f"was a secret and is not kept in {kept.root}", p, fix=f"give it again: {p}=..."
                )
                for p in masked
            ]
        )
    tree, unresolved, reads = reread(kept.tree, kept.record.get("from_environment", {}))
    outside = compose([setting("output_root", tree["output_root"]), *places])
    origins = dict(kept.origins)
    for key in PLACES:
        typed = outside.origins[key].typed and any(o.lstrip("+").startswith(f"{key}=") for o in places)
        tree[key] = outside.tree[key] if typed or key == "resume" else tree[key]
        if typed or key == "resume":
            origins[key] = outside.origins[key]
    # Trusted packages are those of today: a run cannot bring its own.
    composed = judge(tree, origins, unresolved)
    return dataclasses.replace(
        composed,
        choices=kept.record["choices"],
        plugins=used_plugins(kept.record["choices"], tree),
        overrides=(*(o for o in kept.record["overrides"] if not _is_place(o)), *places),
        run_dir=outside.run_dir,
        pickers=kept.record.get("pickers", {}),
        from_environment=reads,
    )


def _recomposed(kept: Kept, changes: list[str], places: list[str], dirs: tuple[Path, ...]) -> Composed:
    """What was typed then, less what is typed anew, and the choices of then where the defaults have changed since."""
    new = {key_of(o) for o in changes}
    typed = [o for o in kept.record["overrides"] if not _is_place(o) and key_of(o) not in new]
    secret = [key_of(o) for o in typed if MASK in o]
    if secret:
        message = f"was a secret and is not kept in {kept.root}"
        raise TuneforgeError.of(Problem("masked-value", message, k, fix=f"give it again: {k}=...") for k in secret)
    before = compose([o for o in kept.record["overrides"] if not _is_place(o) and MASK not in o], dirs)
    moved = {g: o for g, o in kept.record["choices"].items() if before.choices.get(g) != o and g not in new}
    root = setting("output_root", kept.tree["output_root"])
    return compose([root, *(f"{g}={o}" for g, o in moved.items()), *typed, *changes, *places], dirs)


def _notes(kept: Kept, composed: Composed) -> list[str]:
    found = differences(kept.tree, composed.recorded, (kept.origins, composed.origins))
    found = [d for d in found if d.path not in PLACES]
    lines = [f"from {kept.root}: {len(found)} of its values differ" if found else f"from {kept.root}: the same config"]
    lines += [f"  {d}" for d in found]
    if composed.from_environment:
        lines.append(f"  read from the environment: {', '.join(sorted(composed.from_environment))}")
    then, now = kept.record.get("versions", {}), versions()
    lines += [f"  {n} was {v} and is {now.get(n, 'not installed')}" for n, v in then.items() if now.get(n) != v]
    present = {p.name: p.as_record() for p in composed.plugins}
    for plugin in kept.record.get("plugins", ()):
        is_now = present.get(plugin["name"])
        if is_now is None:
            lines.append(f"  plugin {plugin['name']} is not used any more")
        elif is_now["sha256"] != plugin["sha256"]:
            lines.append(f"  plugin {plugin['name']} {plugin['version']} has changed (now {is_now['version']})")
    return lines


def _is_place(override: str) -> bool:
    key = key_of(override)
    return key in PLACES or key == "hydra" or key.startswith(("hydra.", "hydra/"))


def value_at(tree: Mapping[str, Any], path: str) -> Any:
    """The value of a leaf or node, `ABSENT` where there is none."""
    try:
        return lookup(tree, path)
    except KeyError:
        return ABSENT
