"""Shapes and types of every function of the package, checked cheaply.

jaxtyping's own decorator binds each call's arguments to the signature and checks them twice, before
the call and with what came back: a tenth of a run that compiles, a third of one that does not. Here
beartype's wrapper of the function itself checks once; where annotations hold arrays, in a scope of
jaxtyping's, in which an axis of one name has one size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import beartype
from jaxtyping import TypeCheckError, config
from jaxtyping._storage import pop_shape_memo, push_shape_memo, shape_str

# PEP 484's numeric tower: an int is welcome where a float is asked for.
CONF = beartype.BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError)


def jaxtyped(**_: Any) -> Callable[[Any], Any]:
    """What the import hook decorates with, in place of ``jaxtyping.jaxtyped``."""
    return checked


def checked(thing: Any) -> Any:
    """A function that is checked, or a dataclass whose ``__init__`` is."""
    if inspect.isclass(thing):
        if dataclasses.is_dataclass(thing) and not hasattr(thing.__init__, "unchecked"):
            thing.__init__ = checked(thing.__init__)
        return thing
    hints = resolved(thing)
    if inspect.isgeneratorfunction(thing):
        hints.pop("return", None)  # it is of what the generator yields, one by one
    return (with_sizes if any(map(has_arrays, hints.values())) else alone)(
        thing, twin(thing, hints)
    )


def resolved(function: Callable) -> dict[str, Any]:
    """What annotations name; anything, where that is not there to be named."""

    def of(named: dict[str, Any]) -> dict[str, Any]:
        holder = types.SimpleNamespace(__annotations__=named)
        return get_type_hints(holder, function.__globals__, include_extras=True)

    try:
        return of(function.__annotations__)
    except Exception:
        hints = dict.fromkeys(function.__annotations__, Any)
        for name, hint in function.__annotations__.items():
            with contextlib.suppress(Exception):
                hints |= of({name: hint})
        return hints


def has_arrays(hint: Any) -> bool:
    """Whether axis sizes can be told from a value of this type."""
    if isinstance(hint, list):  # arguments of a callable
        return any(map(has_arrays, hint))
    return type(hint).__module__.startswith("jaxtyping") or any(map(has_arrays, get_args(hint)))


def twin(function: Any, hints: dict[str, Any]) -> Callable:
    """The function with other annotations, checked."""
    made = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    made.__kwdefaults__, made.__annotations__ = function.__kwdefaults__, hints
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    return beartype.beartype(conf=CONF)(made)


def alone(function: Callable, twin: Callable) -> Callable:
    """No axis has a name here."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return (function if config.jaxtyping_disable else twin)(*args, **kwargs)

    call.unchecked = function
    return call


def with_sizes(function: Callable, twin: Callable) -> Callable:
    """An axis of one name has one size in a call's arguments and in what comes back."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        sizes = push_shape_memo({})
        try:
            return twin(*args, **kwargs)
        except TypeCheckError as error:
            if told := shape_str(sizes):
                error.add_note(told)
            raise
        finally:
            pop_shape_memo()

    call.unchecked = function
    return call
