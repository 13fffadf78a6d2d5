"""The flags of a command that may run as several processes, on one machine or on many."""

import contextlib
import os
from typing import NamedTuple

from absl import flags

from detzoo.errors import ConfigError, listed

flags.disclaim_key_flags()  # a flag belongs to the command that defines it


class HostFlags(NamedTuple):
    """The flags of `define_hosts`."""

    multihost: flags.FlagHolder[bool]
    coordinator_address: flags.FlagHolder[str | None]
    num_processes: flags.FlagHolder[int | None]
    process_id: flags.FlagHolder[int | None]
    start_timeout: flags.FlagHolder[int]

    def joined(self) -> contextlib.AbstractContextManager[None]:
        """Joins the other processes, see `run.hosts.joined`, if the flags say that there are some."""
        place = self._place()
        if place is None and not self.multihost.value:
            return contextlib.nullcontext()
        from detzoo.run.hosts import Place, joined

        return joined(None if place is None else Place(*place), start_timeout=self.start_timeout.value)

    def _place(self) -> tuple[str, int, int] | None:
        given = [self.coordinator_address, self.num_processes, self.process_id]
        missing = [f'--{flag.name}' for flag in given if flag.value is None]
        if len(missing) == len(given):
            return None
        if missing:
            raise ConfigError(
                f'--coordinator_address, --num_processes and --process_id go together: {listed(missing)} must be given too'
            )
        return tuple(flag.value for flag in given)


def quieten(argv: list[str]) -> None:
    """Keeps JAX's C++ from logging what `run.hosts.joined` tells of in one line; call it before JAX is imported."""
    if any(argument.startswith(('--multihost', '--num_processes')) for argument in argv):
        os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # fatal errors are still logged


def define_hosts() -> HostFlags:
    """Defines the flags that make a command one of several processes."""
    return HostFlags(
        multihost=flags.DEFINE_bool(
            'multihost',
            False,
            'Whether this is one of several processes that JAX finds by itself (TPU pod, SLURM, Open MPI, GKE).',
        ),
        coordinator_address=flags.DEFINE_string(
            'coordinator_address',
            None,
            'Where JAX finds no others by itself: HOST:PORT of the first process, a port that is free.',
        ),
        num_processes=flags.DEFINE_integer('num_processes', None, 'The number of processes.', lower_bound=1),
        process_id=flags.DEFINE_integer('process_id', None, 'The number of this process, from 0.', lower_bound=0),
        start_timeout=flags.DEFINE_integer(
            'start_timeout', 300, 'The seconds in which all processes have to start.', lower_bound=1
        ),
    )
