"""The argument parser of every command: a flag is taken for what it says, or refused.

Standard library only, so that `--help` answers at once in both halves.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import sys
from typing import Any


class Parser(argparse.ArgumentParser):
    """argparse's, for a command and all below it, but no flag is taken for another.

    A shortened or misspelled flag is an error that names the nearest flag there is.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but unknown flags come before what then seems to be missing."""
        words = sys.argv[1:] if args is None else list(args)
        if self._subparsers is None:  # else most of them are a subcommand's, which looks itself
            for word in itertools.takewhile(lambda word: word != "--", words):
                self._check(word.partition("=")[0])
        return super().parse_known_args(args, namespace)

    def _check(self, flag: str) -> None:
        flags = self._option_string_actions
        if not flag.startswith("--") or " " in flag or flag in flags:
            return
        longer = [known for known in flags if known.startswith(flag)]
        nearest = [*longer, *difflib.get_close_matches(flag, flags, n=1, cutoff=0.7)]
        hint = f"Did you mean {nearest[0]}?" if nearest else f"See {self.prog} --help."
        self.exit(2, f"{self.prog}: there is no flag {flag}. {hint}\n")
