"""What can go wrong because of an input, and how it is said.

Every error a user can cause is a `MiniMindError`: the message says what was
wrong, where (file and line) and what to do. The command line prints it
without a traceback and exits with status 2; anything else is a bug of ours
and keeps its traceback.
"""

from __future__ import annotations


class MiniMindError(Exception):
    """Base of all errors that an input, not a bug, has caused."""


class ConfigError(MiniMindError, ValueError):
    """A setting is unknown, of the wrong type or contradicts another."""


class PrecisionError(MiniMindError, ValueError):
    """The device cannot do what was asked of it."""


class DataError(MiniMindError, ValueError):
    """A data file or record cannot be used."""


class CheckpointError(MiniMindError):
    """A saved model or checkpoint is missing, damaged or does not fit."""


class OutputError(MiniMindError):
    """A result cannot be written where it was asked to go."""


class TrainingError(MiniMindError):
    """Training cannot go on, because a loss or a gradient is not finite."""
