"""The argument parser of every command; it rejects unknown and abbreviated flags.

Standard library only, so that `--help` responds at once in both halves.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import sys
from typing import Any


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that does not accept abbreviations.

    An abbreviated or misspelled flag is an error that suggests the nearest flag.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but report unknown flags before missing ones."""
        words = sys.argv[1:] if args is None else list(args)
        if self._subparsers is None:  # else the subcommand's parser checks them
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
