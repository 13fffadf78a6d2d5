"""Paths on the command line, in which `~` is the user's home: behind a `=` the shell leaves it as it is."""

import os
from typing import Any

from absl import flags

flags.disclaim_key_flags()  # a flag belongs to the command that defines it


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)

    def flag_type(self) -> str:
        return 'path'


def define_path(name: str, default: str | None, help: str, **kwargs: Any) -> flags.FlagHolder[str | None]:
    """Defines a flag that is a path; the arguments are those of `flags.DEFINE_string`."""
    return flags.DEFINE(_PathParser(), name, default, help, **kwargs)
