"""Errors that a user can fix, shown without a traceback, and the exception of a run that a signal stopped."""

from collections.abc import Iterator
from contextlib import contextmanager

STOPPED = 130  # the exit code of a run, or a command, that a signal stopped


class UserError(Exception):
    """An error in a spec, a path or an option; its text says what was expected, what was got and the remedy."""


class OtherProcessError(UserError):
    """Another process of a multi-process run has ended; its own message says why."""


class Stopped(BaseException):
    """A signal stopped a run: a training between two steps, with a checkpoint, or a test, which is repeated.

    Its text is the signal's name. Like `KeyboardInterrupt`, it is not an `Exception`, since nothing went wrong.
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
