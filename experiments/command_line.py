"""Command-line options from the signature and docstring of a function, so that each is written once.

Positional parameters are positional on the command line, keyword-only ones are options: `dry_run: bool = False` is
`--dry-run`, `seeds: list[int]` is `--seeds 1 2 3`, a `Literal` is a choice.
"""

from __future__ import annotations

import argparse
import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

import docstring_parser
from typing_extensions import override

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.merge import did_you_mean

REST = "overrides"  # the parameter of this name takes the options that the parser does not define


def call_with_arguments(function: Callable[..., Any], arguments: Sequence[str], *, prog: str) -> None:
    """Call a function with the arguments of a command line.

    Args:
        function: typed, with a Google docstring. If it has a parameter `overrides`, unknown `--part.key value`
            go there, as a dict.
        arguments: the command line.
        prog: the command's name in help and errors.

    Example:
        >>> def greet(names: list[str], *, loud: bool = False) -> None:
        ...     '''Greet people.
        ...
        ...     Args:
        ...         names: whom.
        ...         loud: use capitals.
        ...     '''
        ...     text = " ".join(names)
        ...     print(text.upper() if loud else text)
        >>> call_with_arguments(greet, ["Ada", "Bob", "--loud"], prog="greet")
        ADA BOB
    """
    overrides = {}
    if REST in inspect.signature(function).parameters:
        from beyondpixel.experiments.spec import parse_overrides

        overrides[REST], arguments = parse_overrides(arguments)
    values = vars(make_parser(function, prog).parse_intermixed_args(list(arguments))) | overrides
    function(**values)


class Parser(argparse.ArgumentParser):
    """Parser whose errors are user errors, and name the option that is closest to an unknown one."""

    @override
    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments:.*?(--[\w-]+)", message)
        options = [option for action in self._actions for option in action.option_strings]
        closest = did_you_mean(unknown[1], options) if unknown else ""
        raise UserError(f"{'; '.join(filter(None, [message, closest]))}\nAll options: {self.prog} --help")


def make_parser(function: Callable[..., Any], prog: str) -> argparse.ArgumentParser:
    """Create the parser of a function's arguments."""
    doc = docstring_parser.parse(inspect.getdoc(function) or "", style=docstring_parser.DocstringStyle.GOOGLE)
    texts = {parameter.arg_name: parameter.description or "" for parameter in doc.params}
    description = "\n\n".join(filter(None, [doc.short_description, doc.long_description]))
    # no abbreviations: a config key such as --trainer.x must never be taken for an option
    parser = Parser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name == REST:
            continue
        text = " ".join(texts.get(name, "").split()).replace("%", "%%")
        _add(parser, name, parameter, hints[name], text)
    return parser


def _add(parser: argparse.ArgumentParser, name: str, parameter: inspect.Parameter, hint: Any, text: str) -> None:
    required = parameter.default is inspect.Parameter.empty
    kind, several = _kind(hint)
    settings = {"help": text, **_values(kind)}
    if not required:
        settings["default"] = parameter.default
        if kind is not bool and parameter.default not in (None, [], ()):
            defaults = parameter.default if several else [parameter.default]
            settings["help"] += f" (default: {' '.join(map(str, defaults))})"
    if parameter.kind is parameter.KEYWORD_ONLY:
        dashed = f"--{name.replace('_', '-')}"
        spellings = dict.fromkeys(["--ckpt_path", dashed] if name == "ckpt_path" else [dashed, f"--{name}"])
        parser.add_argument(*spellings, dest=name, required=required, **settings, **({"nargs": "+"} if several else {}))
    else:
        counts = {(True, True): "+", (False, True): "*", (False, False): "?"}
        parser.add_argument(name, metavar=name.upper(), nargs=counts.get((required, several)), **settings)


def _values(kind: Any) -> dict[str, Any]:
    """Settings of argparse for values of a type."""
    if kind is bool:
        return {"action": "store_true"}
    if typing.get_origin(kind) is Literal:
        return {"type": str, "choices": typing.get_args(kind)}
    return {"type": kind}


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type of one value of an argument, and whether it takes several values."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) in (list, Sequence, tuple):
        return typing.get_args(hint)[0], True
    return hint, False
