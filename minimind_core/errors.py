"""The errors that a wrong input can cause.

Each one is a `MiniMindError`. Its message says what is wrong, where it is
(the file and the line, if there is one) and what you can do about it. The
command line prints the message without a traceback and exits with status 2.
Any other exception is a bug in this package, and keeps its traceback.
"""

from __future__ import annotations


class MiniMindError(Exception):
    """Base class of all errors that are caused by an input."""


class ConfigError(MiniMindError, ValueError):
    """A setting is unknown, has the wrong type or contradicts another one."""


class PrecisionError(MiniMindError, ValueError):
    """The device does not support the requested number format."""


class DataError(MiniMindError, ValueError):
    """A data file or a record in it cannot be used."""


class CheckpointError(MiniMindError):
    """A saved model or checkpoint is missing, damaged or incompatible."""


class OutputError(MiniMindError):
    """A result cannot be written to the place that was given for it."""


class TrainingError(MiniMindError):
    """Training cannot go on, because a loss or a gradient is not finite."""
