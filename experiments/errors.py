"""Errors that a user can mend, shown without a traceback, and the stop that a signal asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

STOPPED = 130  # the exit code of a run, or a command, that a signal stopped


class UserError(Exception):
    """An error in a spec, a path or an option; its text says what was expected, what was got and the remedy."""


class OtherProcessError(UserError):
    """Another process of a run on several has ended, and has said why itself."""


class Stopped(BaseException):
    """A run was asked to stop by a signal, and has done so between two steps, with a checkpoint.

    Its text is the signal's name. It is no `Exception`, like `KeyboardInterrupt`: nothing went wrong.
    """


@contextmanager
def as_user_error(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors that name their remedy into user errors.

    Example:
        >>> with as_user_error(FileNotFoundError):
        ...     raise FileNotFoundError("no weights there")
        Traceback (most recent call last):
            ...
        beyondpixel.experiments.errors.UserError: no weights there
    """
    try:
        yield
    except kinds as error:
        raise UserError(str(error)) from error
