"""Compiled programs kept on disk from one process to the next (JAX's persistent cache)."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import jax

OFF = "off"
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"
_saved = [0.0]


def _told(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == _SAVED:
        _saved[0] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_told)


def saved_seconds() -> float:
    """Seconds of compiling that programs found on disk have spared this process so far."""
    return _saved[0]


def default_cache() -> Path:
    """The user's cache folder, by machine: code compiled for one processor is no use to another."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fairbilevel" / "programs" / f"{platform.machine()}-{_processor()}"


def _processor() -> str:
    """A short name of what the processor can do."""
    told = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def compile_cache(where: str | Path | None = None) -> Path | None:
    """Keep compiled programs on disk, for this process and those to come.

    A damaged entry, a full disk or a folder that cannot be written costs a compilation, no more.

    Args:
        where: a folder, or ``"off"``; by default ``default_cache()``, unless JAX was told of a
            folder of its own (``JAX_COMPILATION_CACHE_DIR``).

    Returns:
        The folder, ``None`` where there is none.

    Raises:
        ValueError: a file where the folder should be.
    """
    config: Any = jax.config
    if where == OFF:
        config.update("jax_enable_compilation_cache", False)
        return None
    # JAX compiles in the place of an entry that it cannot read or write, and complains each time.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    if where is None and config.jax_compilation_cache_dir:
        return Path(config.jax_compilation_cache_dir)
    folder = default_cache() if where is None else Path(where).absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: compiled programs want a folder, or 'off'")
    config.update("jax_enable_compilation_cache", True)
    config.update("jax_compilation_cache_dir", str(folder))
    # Small programs add up: each is a tenth of a second, and there are dozens.
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder
