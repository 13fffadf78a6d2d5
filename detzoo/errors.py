"""The errors that users can fix. A message names the file or the key, and the remedy; commands print it without a traceback."""


class ConfigError(ValueError):
    """A config cannot be used; the message names the key and the remedy."""


class DataError(ValueError):
    """Data cannot be used; the message names the file or record and the remedy."""


class StorageError(OSError):
    """A file of a run could not be written; earlier files are complete."""


class InUseError(RuntimeError):
    """Another process is writing to the folder or file."""


class FirstProcessError(RuntimeError):
    """The first process of a run ended with an error, and so do the others."""


class RecompilationError(RuntimeError):
    """A function would be compiled for more shapes than there are canvases."""
