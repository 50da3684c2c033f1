"""What a user can mend: shown as one message, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in a spec, a path or an option; its text says what was expected, what was got and the remedy."""


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
