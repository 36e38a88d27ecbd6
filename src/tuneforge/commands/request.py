"""A command as it was typed."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from tuneforge.compose import Composed, compose
from tuneforge.errors import TuneforgeError


@dataclass(frozen=True)
class Request:
    """What a verb's `run` gets."""

    verb: str
    words: tuple[str, ...]
    """Arguments that are neither flags nor overrides: files and folders."""
    overrides: tuple[str, ...]
    """`key=value` arguments, in Hydra's grammar."""
    flags: argparse.Namespace
    """The flags of `tuneforge.cli`, by the names that argparse gives them."""

    @property
    def base(self) -> Path | None:
        """The run folder that the config starts from: `--from RUN`, or a folder among the words.

        Raises:
            TuneforgeError: two of them, or one that is no run.
        """
        given = [*([self.flags.base] if self.flags.base else []), *map(Path, self.words)]
        if len(given) > 1:
            raise TuneforgeError(
                "too-many-words", f"wanted one run folder, got {', '.join(map(str, given))}", fix="name one"
            )
        return given[0] if given else None

    def compose(self) -> Composed:
        """The config of this command: of the base run where one is named, else of the option files.

        Raises:
            TuneforgeError: with every problem of the config.
        """
        if self.base is None:
            return compose(self.overrides, self.flags.config_dir)
        from tuneforge.rerun import compose_from

        return compose_from(self.base, self.overrides, self.flags.config_dir)
