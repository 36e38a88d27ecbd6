"""What `--help` and `--cfg job` print."""

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_omega_conf_dumper

from tuneforge.errors import TuneforgeError, did_you_mean
from tuneforge.front import front, groups
from tuneforge.plugins import registry
from tuneforge.plugins.plugin import Plugin

_HELP = """\
tuneforge: composable fine-tuning of language models

usage: python -m tuneforge [VERB] [GROUP=OPTION ...] [KEY=VALUE ...]

examples:
  python -m tuneforge                                              bundled model and text, 3 minutes on a CPU
  python -m tuneforge method=qlora hardware=rtx4090                4-bit base, LoRA adapters, planned for a 24 GB card
  python -m tuneforge model=hf model.path=DIR data=file data.path=rows.jsonl
  python -m tuneforge plan method=qlora hardware=rtx4090           what would run, and whether it fits
  python -m tuneforge plan --why optim.lr                          what set a value, and what it would be without
  python -m tuneforge --from outputs/RUN optim.lr=1e-4             a run again, with a change
  python -m tuneforge -m optim.lr=1e-4,2e-4,4e-4                   one run for each value
  python -m tuneforge -m +sweep=lora_quick                         a search that is ready made

verbs:
{verbs}

groups and their options (a run picks one of each):
{groups}
{plugins}
keys people set most:
  model.path=ID|FOLDER      data.path=FILE          data.max_length=N        method.r=N
  optim.lr=X                batch.effective=N       batch.per_device=N       trainer.max_steps=N
  trainer.max_epochs=X      trainer.devices=N       resume=auto|RUN          seed=N

flags:
  --from RUN                 start from the config of a run folder (or name the folder without a flag)
  --cfg job [--package KEY]  print the resolved config, or one node of it, and stop
  --multirun, -m             search: every combination of comma-separated values, intervals, or +sweep=NAME
  --config-dir DIR, -cd      option files of your own, in folders named like the groups
  --json, --json-errors      answers, and problems, for machines
  --cfg hydra|all, --info    what Hydra composes, of the same checked config
  --version                  print the version
  --help, -h                 this text

exit codes: 0 done, 1 our fault, 2 something you can fix, 3 a check refused the result, 130/143 interrupted"""


def help_text(verbs: Mapping[str, str], config_dirs: Sequence[Path]) -> str:
    """The help page, with the options that are really there."""
    with front(config_dirs) as loader:
        found = groups(loader)
    width = max(map(len, found))
    listing = "\n".join(
        textwrap.fill(
            " ".join(options), 116, initial_indent=f"  {group:<{width}}  ", subsequent_indent=" " * (width + 4)
        )
        for group, options in sorted(found.items())
    )
    said = "\n".join(
        textwrap.fill(what, 116, initial_indent=f"  {name:<8} ", subsequent_indent=" " * 11)
        for name, what in verbs.items()
    )
    return _HELP.format(verbs=said, groups=listing, plugins=_of_plugins())


def verb_text(name: str, does: str, word: str, example: str, flags: Sequence[str]) -> str:
    """The help page of one verb."""
    words = " | ".join(word.split(", ")) if word else ""
    usage = f"python -m tuneforge {name} {f'[{words}] ' if words else ''}[FLAG ...] [GROUP=OPTION ...] [KEY=VALUE ...]"
    # import reads a file, and composes no config of its own.
    usage = usage if word != "FILE" else f"python -m tuneforge {name} FILE [FLAG ...]"
    return "\n".join(
        [
            textwrap.fill(f"{name}: {does}", 118),
            f"\nusage: {usage}",
            f"\nexample:\n  python -m tuneforge {name} {example}",
            "\nflags:",
            *flags,
            "\n`python -m tuneforge --help` lists the verbs, groups, options and the keys people set most",
        ]
    )


def flag_line(action: argparse.Action) -> str:
    """A flag with its forms, what it takes and what it does."""
    takes = "|".join(action.choices) if action.choices else action.metavar or ""
    if not takes and action.nargs != 0:
        takes = action.dest.upper()
    name = f"{', '.join(action.option_strings)} {takes}".rstrip()
    first = f"  {name:<32} "
    return textwrap.fill(str(action.help), 118, initial_indent=first, subsequent_indent=" " * 35)


def _of_plugins() -> str:
    """Which of the options above are a plugin's, one line a plugin."""
    found = registry.plugins()
    lines = [
        f"  {p.name} {p.version}  "
        + ("broken, see `tuneforge plugins`" if p.troubles else " ".join(f"{g}={o}" for g, o in _pairs(p)))
        for p in found
    ]
    return "\n".join(["", "of plugins:", *lines, ""]) if found else ""


def _pairs(plugin: Plugin) -> list[tuple[str, str]]:
    return [(group, option) for group, options in plugin.options.items() for option in options]


def config_text(tree: Mapping[str, Any], package: str | None) -> str:
    """The resolved config as YAML, or the node at the dotted path `package`."""
    node: Any = tree
    for part in package.split(".") if package else []:
        if not isinstance(node, dict) or part not in node:
            known = node if isinstance(node, dict) else []
            raise TuneforgeError(
                "unknown-node", f"--package {package}: there is no node {part!r}", fix=did_you_mean(part, known)
            )
        node = node[part]
    if not isinstance(node, dict):
        return str(node)
    # As OmegaConf.to_yaml, which would first make a config of it: 2 ms instead of 17.
    text = yaml.dump(
        node, Dumper=get_omega_conf_dumper(), default_flow_style=False, allow_unicode=True, sort_keys=False
    )
    return str(text).rstrip()
