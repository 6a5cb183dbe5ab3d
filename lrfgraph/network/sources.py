"""The source of a user's own classes and functions: the code that acts where a network holds more than Keras' layers.

A class is its text, that of its bases, and all that its code names in turn: helpers, constants, modules. Libraries end
the search; their versions are written beside results and are part of no digest.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["LIBRARIES", "is_library", "source_of"]

LIBRARIES = {"keras", "tensorflow", "numpy", "scipy", "jax", "torch", "lrfgraph"} | set(sys.stdlib_module_names)


def is_library(item: Any) -> bool:
    """Whether a class, function or module belongs to Keras, TensorFlow, NumPy, Python or this package."""
    name = item.__name__ if isinstance(item, types.ModuleType) else getattr(item, "__module__", None)
    # what a user types is in __main__, which the standard library has a module of, too
    return name != "__main__" and str(name).split(".")[0] in LIBRARIES


def source_of(item: Any) -> list[Any]:
    """Return the source of a class or function, and of all of the user's that it names, as JSON.

    Raises TypeError where there is neither text nor code to read.
    """
    sources: dict[int, Any] = {}
    pending = [item]
    while pending:
        each = pending.pop()
        if id(each) not in sources:
            sources[id(each)] = _text(each)
            items = (value if _has_source(value) else type(value) for value in _named(each))
            pending += [other for other in items if not is_library(other)]
    return sorted(sources.values(), key=str)


def _has_source(value: Any) -> bool:
    return isinstance(value, type | types.FunctionType)


def _text(item: Any) -> list[Any]:
    """Return a name, the text (of what has none, the compiled code) and the plain values that go with it."""
    try:
        text: Any = inspect.getsource(item)
    except (OSError, TypeError):
        text = [_compiled(function.__code__) for function in _functions(item)]
        if not text:
            raise TypeError("it has no source") from None
    return [item.__qualname__, text, sorted(_constants(item))]


def _functions(item: Any) -> Iterator[types.FunctionType]:
    """Yield a function, or those of a class and of its own bases."""
    if isinstance(item, types.FunctionType):
        yield item
        return
    for value in vars(item).values():
        inner = next((getattr(value, name) for name in _WRAPPED if getattr(value, name, None)), value)
        inner = inspect.unwrap(inner) if callable(inner) else inner
        if isinstance(inner, types.FunctionType):
            yield inner


def _named(item: Any) -> Iterator[Any]:
    """Yield the values that a class or function refers to: bases, globals, closures, defaults, attributes."""
    if isinstance(item, type):
        yield from item.__bases__
        yield from vars(item).values()
    for function in _functions(item):
        yield from function.__defaults__ or ()
        yield from (function.__kwdefaults__ or {}).values()
        yield from (cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell))
        names = _names(function.__code__)
        yield from _values(function.__globals__, names)


def _values(namespace: Mapping[str, Any], names: set[str]) -> Iterator[Any]:
    """Yield the values of `names` in a namespace, in place of a module those of the same names in it."""
    for name in names & namespace.keys():
        value = namespace[name]
        if not isinstance(value, types.ModuleType):
            yield value
        elif not is_library(value):
            yield from _values(vars(value), names - {name})


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def _constants(item: Any) -> Iterator[str]:
    """Yield the plain values among what an item names; for any other object the text of the module that makes it."""
    for value in _named(item):
        if _has_source(value) or isinstance(value, _MEMBERS):
            continue
        plain = _plain(value)
        yield _module_text(sys.modules.get(item.__module__)) if plain is None else plain


_WRAPPED = ("__func__", "fget", "python_function")
"""Where static and class methods, properties and ``tf.function`` keep the function."""

_MEMBERS = (staticmethod, classmethod, property, types.GetSetDescriptorType, types.MemberDescriptorType,
            types.BuiltinFunctionType, functools.partialmethod)  # fmt: skip


def _module_text(module: Any) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        return ""


def _plain(value: Any) -> str | None:
    """Write a value that says all about itself, or return ``None``."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, np.ndarray | np.generic) and not np.asarray(value).dtype.hasobject:
        array = np.ascontiguousarray(value)
        return f"{array.dtype.str}{array.shape}{hashlib.blake2b(array.tobytes(), digest_size=20).hexdigest()}"
    if isinstance(value, tuple | list | set | frozenset):
        items = [_plain(item) for item in value]
        if None in items:
            return None
        in_order = items if isinstance(value, tuple | list) else sorted(map(str, items))
        return f"{type(value).__name__}{in_order}"
    if isinstance(value, dict):
        pairs = [(_plain(key), _plain(item)) for key, item in value.items()]
        return None if any(None in pair for pair in pairs) else f"dict{pairs}"
    return None


def _compiled(code: types.CodeType) -> list[Any]:
    inner = [_compiled(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    constants = [_plain(each) for each in code.co_consts]
    return [code.co_code.hex(), inner, constants, list(code.co_names), list(code.co_varnames)]
