"""Parsing of arguments that are an integer or a float: an integer stays an integer."""

from __future__ import annotations

from types import UnionType
from typing import Any, Union, get_args, get_origin

from jsonargparse import ArgumentParser


def put_integers_first(parser: ArgumentParser) -> None:
    """Make a parser try int before float, as in Trainer's annotations: 1 is one batch, and 1.0 is all of them.

    The order is lost if a library used the types in the other order shortly before Trainer was imported: Python caches
    recent types, and uses one `Optional[Union[int, float]]` for both orders.

    Example:
        >>> def train(limit: float | int | None = None) -> None: ...
        >>> parser = ArgumentParser()
        >>> _ = parser.add_function_arguments(train)
        >>> put_integers_first(parser)
        >>> parser.parse_args(["--limit=1"]).limit, parser.parse_args(["--limit=0.5"]).limit
        (1, 0.5)
    """
    for action in parser._actions:
        argument: Any = action
        types = get_args(getattr(argument, "_typehint", None))
        if get_origin(getattr(argument, "_typehint", None)) in (Union, UnionType) and {int, float} <= set(types):
            argument._typehint = Union[tuple(sorted(types, key=lambda one: one is not int))]  # noqa: UP007
