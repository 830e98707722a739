"""What is raised where a checkpoint cannot be converted."""

from __future__ import annotations


class ConversionError(ValueError):
    """A checkpoint that is not what it should be; the message is one sentence."""


def first_cause(error: BaseException) -> BaseException:
    """What an error goes back to.

    PyTorch reports what goes wrong in reading and writing under a name of its own.
    """
    while error.__context__ is not None:
        error = error.__context__
    return error
