"""The flag --checkpoint: which checkpoint of a workdir."""

from typing import Any

from absl import flags

flags.disclaim_key_flags()  # a flag belongs to the command that defines it


class _CheckpointParser(flags.ArgumentParser):
    def parse(self, argument: Any) -> int | str:
        if argument == 'best' or (isinstance(argument, int) and argument >= 0):
            return argument
        if not str(argument).isdecimal():
            raise ValueError(f"{argument!r} is neither a step nor 'best'")
        return int(argument)

    def flag_type(self) -> str:
        return 'checkpoint'


def define_checkpoint() -> flags.FlagHolder[int | str | None]:
    """Defines the flag --checkpoint; its value is what `inference.predictor.load` takes as a step."""
    return flags.DEFINE(
        _CheckpointParser(),
        'checkpoint',
        None,
        "The step of the checkpoint, or 'best': that of the best evaluation, where training.keep_best is set. "
        'The newest by default.',
    )
