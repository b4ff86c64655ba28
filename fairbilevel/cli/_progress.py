"""What a user sees while a run goes on: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fairbilevel._numbers import in_points, percent

_PHASES = {
    "dense": "dense model",
    "bilevel": "bilevel: mask and weights",
    "prune": "pruning",
    "finetune": "fine-tuning",
    "settle": "fine-tuning on all rows",
    "baseline": "baseline: gradual magnitude",
}
_WAITING = 0.01  # share of the time from which it is worth saying
_EVERY = 5.0  # seconds between two lines on one pass


def _time(seconds: float) -> str:
    minutes, rest = divmod(max(round(seconds), 0), 60)
    return f"{minutes}:{rest:02d}"


class Passes:
    """Says on standard error how far passes over all rows are: those that take their time."""

    def __init__(self) -> None:
        self._what, self._begun, self._said = "", 0.0, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Rows done, of how many."""
        now = time.monotonic()
        if what != self._what or done == 0:
            self._what, self._begun, self._said = what, now, now
        if now - self._said >= _EVERY or (done == total and self._said > self._begun):
            self._said = now
            left = _time((now - self._begun) * (total - done) / max(done, 1))
            told = f"{what}: {done:,} of {total:,} rows, {left} left"
            print(f"fairbilevel: {told}", file=sys.stderr, flush=True)


class Progress:
    """Shows the records of ``metrics.jsonl`` as they come.

    Args:
        console: where to write; live where it is a terminal.
        total: gradient evaluations of the whole run, for the time left.
    """

    def __init__(self, console: Console, total: float):
        self.console, self.total = console, total
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        # Of each of the three parts of a run: gradient evaluations, seconds apart from compiling.
        self._done: dict[str, tuple[float, float]] = {}
        self._printed: tuple[str, int] = ("", -1)

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, record: dict[str, Any]) -> None:
        """Show one record."""
        # Fine-tuning continues the count of gradient evaluations of the phase before.
        key = record["phase"] if record["phase"] in ("dense", "baseline") else "method"
        running = record["seconds"] - record["compile_seconds"]
        self._done[key] = (record["gradient_evaluations"], running)
        done = sum(gradients for gradients, _ in self._done.values())
        elapsed = sum(seconds for _, seconds in self._done.values())
        left = elapsed / done * max(self.total - done, 0) if done > 0 else 0.0
        tune = record["tune"]
        cells = [
            ("phase", _PHASES.get(record["phase"], record["phase"])),
            ("step", f"{record['step']:,} of {record['steps']:,}"),
            ("sparsity", percent(record["sparsity"])),
            ("loss", f"{record['loss']:.3f}"),
            ("accuracy on tune", percent(tune["accuracy"])),
            ("worst group", percent(tune.get("worst_group_accuracy"))),
            ("largest violation", in_points(tune.get("largest_violation"), signed=True)),
            ("time left", _time(left)),
        ]
        if record.get("guard"):
            cells.append(("guard", f"active in {percent(record['guard'], 0)} of the steps"))
        if record.get("waiting", 0) >= _WAITING:
            cells.append(("waiting for rows", percent(record["waiting"])))
        if self._live is not None:
            table = Table.grid(padding=(0, 2))
            for name, value in cells:
                table.add_row(f"[dim]{name}[/dim]", value)
            self._live.update(table)
            return
        # Plain lines: about five a phase, so that a log stays readable.
        phase, step = record["phase"], record["step"]
        fifth = 5 * step // record["steps"]
        if (phase, fifth) != self._printed or step == record["steps"]:
            self._printed = (phase, fifth)
            text = "  ".join(f"{name} {value}" for name, value in cells[1:])
            self.console.print(f"{cells[0][1]}: {text}", highlight=False, soft_wrap=True)
