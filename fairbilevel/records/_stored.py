"""Arrays as Orbax stores them: read back like others, known by digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fairbilevel import devices


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or belongs to another run; one sentence."""


def not_of_orbax(record: logging.LogRecord) -> bool:
    """Leaves out the tracebacks that Orbax logs of every thread: what failed is raised here."""
    return "orbax" not in record.pathname and "tensorstore" not in record.getMessage()


class quiet_stragglers:
    """A read or write that failed leaves others of the same checkpoint under way, which then find
    their event loop closed and would print a traceback each."""

    held: ClassVar[int] = 0  # by how many; the first takes the hooks, the last gives them back
    _hooks: ClassVar[tuple[Any, Any]]

    def __enter__(self) -> quiet_stragglers:
        kind = quiet_stragglers
        kind.held += 1
        if kind.held > 1:
            return self
        kind._hooks = raised, ignored = sys.excepthook, sys.unraisablehook

        def of_raised(kind: Any, error: Any, trace: Any) -> None:
            if not self._is_one(error):
                raised(kind, error, trace)

        def of_ignored(what: Any) -> None:
            if not self._is_one(what.exc_value):
                ignored(what)

        sys.excepthook, sys.unraisablehook = of_raised, of_ignored
        return self

    def __exit__(self, *error: object) -> None:
        kind = quiet_stragglers
        kind.held -= 1
        if not kind.held:
            sys.excepthook, sys.unraisablehook = kind._hooks

    @staticmethod
    def _is_one(error: Any) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    @staticmethod
    def wait() -> None:
        """Until they have come to their ends."""
        time.sleep(0.3)


@contextlib.contextmanager
def plainly(folder: Path) -> Iterator[None]:
    """Turns what the file format raises while it writes into one sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        if devices.lost_others(error):
            raise  # no fault of the folder's
        text = " ".join(str(error).split()) or type(error).__name__
        told = re.search(r"([^:]+) \[os_error_code", text)
        reason = told[1].strip() if told else getattr(error, "strerror", None) or text[:300]
        raise CheckpointError(
            f"cannot write a checkpoint in {folder}: {reason}; the checkpoints before it stand, "
            "the run can be gone on with"
        ) from error


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def bare(leaf: Any) -> Any:
    """A random key as the integers it is made of."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def held(leaf: Any) -> Any:
    """A copy that no donation can take away."""
    if jax.process_count() > 1 and isinstance(leaf, jax.Array):
        return jnp.array(leaf, copy=True)
    return np.array(leaf, copy=True)


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if jax.process_count() > 1 and isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=host)


def like_stored(leaf: Any, value: Any) -> Any:
    """What was read, where and what ``leaf`` is."""
    if not isinstance(leaf, jax.Array):
        return np.array(value)
    if _is_key(leaf):
        data = jnp.asarray(np.array(value))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if jax.process_count() > 1:
        return value
    if len(leaf.sharding.device_set) > 1:
        return jax.device_put(np.array(value), leaf.sharding)
    return jnp.asarray(np.array(value))


def digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_arrays(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays, key=int):
        value = np.ascontiguousarray(np.asarray(arrays[name]))
        digest.update(f"{name} {value.dtype} {value.shape};".encode())
        digest.update(value.view(np.uint8) if value.ndim else value.tobytes())
    return digest.hexdigest()
