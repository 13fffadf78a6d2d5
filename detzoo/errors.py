"""What detzoo raises when a user can mend it: a command prints the message, which names the file or key and the remedy."""


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key and what to do."""


class DataError(ValueError):
    """Data that can't be used; the message names the file or record and says what to do."""


class StorageError(OSError):
    """A file of a run could not be written; what was written before is whole."""


class InUseError(RuntimeError):
    """Another process writes to the folder or file."""


class FirstProcessError(RuntimeError):
    """The first process of a run ended with an error of its own, and the others with it."""


class RecompilationError(RuntimeError):
    """A function was traced for a shape that nobody announced."""
