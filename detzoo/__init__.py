"""detzoo: object detectors in JAX, side by side under controlled variables."""

from typing import TYPE_CHECKING, Any

__version__ = '0.1.0'
__all__ = ['load', 'train_and_evaluate']

if TYPE_CHECKING:
    from detzoo.inference.predictor import load
    from detzoo.training.loop import train_and_evaluate


def __getattr__(name: str) -> Any:
    """Imports what is re-exported when it is first used: `import detzoo` alone stays quick, as command lines want it."""
    if name == 'load':
        from detzoo.inference.predictor import load

        return load
    if name == 'train_and_evaluate':
        from detzoo.training.loop import train_and_evaluate

        return train_and_evaluate
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
