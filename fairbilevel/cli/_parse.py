"""From words on the command line to options; complaints become one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tyro

from fairbilevel import _options


def parse(kind: Any, name: str, words: list[str], default: Any = None) -> Any:
    options = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=f"fairbilevel {name}", args=words, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(_sentence(complaint.getvalue(), name)) from None


def _sentence(box: str, name: str) -> str:
    """The parser's boxed complaint as one sentence, with its first suggestion."""
    lines = [line.strip(" │") for line in box.splitlines()]
    # The box: a titled top edge, what is wrong, then ruled-off help and a bottom edge.
    edges = [i for i, line in enumerate(lines) if line[:2] in ("──", "--", "╭─", "╰─")]
    first, last = (edges[0] + 1, edges[1]) if len(edges) > 1 else (0, len(lines))
    said = " ".join(line for line in lines[first:last] if line).rstrip(".")
    suggested = next(
        (lines[i + 1].split()[0] for i, line in enumerate(lines[:-1]) if "Perhaps" in line), None
    )
    choice = re.search(r"invalid choice '(.*)' for argument '(\S+)'.*one of \((.*)\)", said)
    if choice:
        names = [n for n in re.findall(r"'([^']*)'", choice[3]) if n != "None"]
        said = f"{choice[2]} {choice[1]!r} is unknown: {_options.choose(choice[1], names)}"
    hint = f"; did you mean {suggested}?" if suggested else ""
    return f"{said}{hint} (`fairbilevel {name} --help` lists the options)"


def configuration(name: str, words: list[str], default: Any = None) -> Any:
    """Options from the command line over those of ``--config FILE`` or ``default``, if given."""
    from fairbilevel import data, devices
    from fairbilevel.cli._progress import Passes
    from fairbilevel.run import Config, read_config

    default, rest = default or Config(), []
    remaining = iter(words)
    for word in remaining:
        if word == "--config":
            path = next(remaining, None)
            if path is None:
                raise ValueError("--config wants a TOML or JSON file")
            default = read_config(Path(path))
        elif word.startswith("--config="):
            default = read_config(Path(word.removeprefix("--config=")))
        else:
            rest.append(word)
    # A repeated option on the command line replaces the file's or default's values; tyro alone
    # would append to them.
    given = {w.split("=", 1)[0].lstrip("-").replace("-", "_") for w in rest if w.startswith("--")}
    repeated = [f.name for f in dataclasses.fields(Config) if isinstance(f.default, tuple)]
    no_values: dict[str, Any] = dict.fromkeys(repeated, ())
    cleared = dataclasses.replace(default, **no_values)
    help_default = default if {"help", "h"} & given or "-h" in rest else cleared
    parsed = parse(Config, name, _said(_budgets(name, rest)), help_default)
    if help_default is cleared:
        kept: dict[str, Any] = {n: getattr(default, n) for n in repeated if n not in given}
        parsed = dataclasses.replace(parsed, **kept)
    devices.compile_cache(parsed.compile_cache)
    data.watch_passes(Passes())
    if name != "solve" and parsed.processes() is not None:
        raise ValueError(f"only `fairbilevel solve` runs in several processes, not {name}")
    return parsed


def _budgets(name: str, words: list[str]) -> list[str]:
    """``--target multiply-adds=50%``, the share of the dense network that is left, as the sparsity
    that it is; ``--target COLUMN`` stays the column to predict."""
    from fairbilevel.masks import MEASURES

    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--target":
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    said: list[str] = []
    for word in joined:
        option, _, text = word.partition("=")
        measure, equals, amount = text.partition("=")
        if option != "--target" or not equals or measure not in MEASURES:
            said += word.split("=", 1) if option == "--target" else [word]
            continue
        share = _options.fraction(amount)
        if share is None or not 0 < share <= 1:
            raise ValueError(
                f"--target {measure} takes the share that is left, as {measure}=50%, got {amount!r}"
            )
        given = {w.partition("=")[0] for w in words}
        for other in {"--sparsity", "--sparsity-of"} & given:
            raise ValueError(f"--target {measure} says what is left: leave {other} out")
        if name in ("compare", "frontier"):
            raise ValueError(
                f"{name} takes several: give --sparsity-of {measure} with --sparsities in place of "
                "--target"
            )
        said += ["--sparsity-of", measure, "--sparsity", repr(round(1 - share, 12))]
    return said


def _said(words: list[str]) -> list[str]:
    """``--no-follow-weights`` and ``--follow-weights`` alone, of options that a method leaves open,
    as the parser wants them."""
    from fairbilevel.run import SWITCHES

    said: list[str] = []
    for i, word in enumerate(words):
        name = word.removeprefix("--").replace("-", "_")
        value = words[i + 1] if i + 1 < len(words) else "--"
        if word.startswith("--no-") and name.removeprefix("no_") in SWITCHES:
            said += [f"--{word.removeprefix('--no-')}", "False"]
        elif word.startswith("--") and name in SWITCHES and value.startswith("-"):
            said += [word, "True"]
        else:
            said.append(word)
    return said


def taken(
    words: list[str], names: dict[str, str], refused: Mapping[str, str] = MappingProxyType({})
) -> tuple[dict[str, str], list[str]]:
    """The options in ``names`` (with their defaults) out of the words, and the other words; those
    of ``solve`` that would say nothing are refused, with what to do instead."""
    found, rest = dict(names), []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in names:
            given = value if equals else next(remaining, None)
            if not given:
                raise ValueError(f"--{name} wants a value")
            found[name] = given
        elif word.startswith("--") and name in refused:
            raise ValueError(f"--{name} says nothing here: {refused[name]}")
        else:
            rest.append(word)
    return found, rest


def shares(text: str) -> list[float]:
    """Sparsities with commas between them."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--sparsities are numbers in [0, 1), got {text.strip()!r}") from None


def whole(options: dict[str, str], name: str) -> int:
    """A whole number among the options."""
    try:
        return int(options[name])
    except ValueError:
        raise ValueError(f"--{name} wants a whole number, got {options[name]!r}") from None


def engine_asked(options: dict[str, str], words: list[str]) -> tuple[Any, list[str]]:
    """What carries out the jobs by ``--executor``, ``--processes`` and ``--slurm-*``, and the other
    words."""
    from fairbilevel.sweeps import engine_of

    processes = whole(options, "processes") or os.cpu_count() or 1
    return engine_of(words, options["executor"], processes)
