"""Makes dataclasses of parsed JSON: names and types are checked all the way down, and nothing is guessed."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from clipserve.errors import SpecError

T = TypeVar("T")


def build(cls: type[T], data: Any, where: str) -> T:
    """Makes a dataclass of a JSON object.

    Args:
        where: names the object in error messages.

    Raises:
        SpecError: a field is missing, unknown or of another type.
    """
    if not isinstance(data, dict):
        raise SpecError(f"{where}: {type(data).__name__}, should be an object")
    hints = get_type_hints(cls)
    unknown, missing = set(data) - set(hints), set(hints) - set(data)
    if unknown or missing:
        raise SpecError(
            f"{where}: unknown fields {sorted(unknown)}, missing fields {sorted(missing)}; "
            "run 'make export' again"
        )
    return cls(**{key: _value(hint, data[key], f"{where}: {key}") for key, hint in hints.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):
        if value is None:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise SpecError(f"{where}: {value!r}, allowed are {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise SpecError(f"{where}: {value!r}, should be a list")
        return tuple(_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise SpecError(f"{where}: {value!r}, should be an object")
        return {k: _value(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]  # narrowed to an instance or a type
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise SpecError(f"{where}: a number of {len(str(value))} digits") from error
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise SpecError(f"{where}: {value!r}, should be {hint.__name__}")
    return value
