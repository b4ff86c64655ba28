"""A sweep of sums, in a module of its own: processes of executors import it in a second."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from fairbilevel.sweeps import Engine, Job, NotReady, Part, Sweep, carry_out


@dataclass(frozen=True)
class Sums(Sweep):
    """Two totals, and three numbers from each; a marker for every time that one is computed.

    ``kill``, ``fail``: jobs whose process dies, or that raise, the first so many times; ``totals``:
    of them.
    """

    kill: tuple[str, int] = ("", 0)
    fail: tuple[str, int] = ("", 0)
    seconds: float = 0.0
    totals: int = 2

    def jobs(self):
        return [Job(f"{t}-{i}", after=f"{t}-total") for t in range(self.totals) for i in range(3)]

    def merged(self):
        return set()

    def run(self, name):
        marks = self.folder / "marks"
        marks.mkdir(exist_ok=True)
        before = len(list(marks.glob(f"{name}.*")))
        (marks / f"{name}.{time.time_ns()}").touch()
        time.sleep(self.seconds)
        if self.kill[0] == name and before < self.kill[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fail[0] == name and before < self.fail[1]:
            raise RuntimeError("no luck")
        if name.endswith("total"):
            return Part({"total": 10 * int(name[0])})
        total = self.read_part(f"{name[0]}-total")
        if total is None:
            raise NotReady
        return Part({"sum": total.record["total"] + int(name[-1])}, line=name)

    def computed(self):
        """Times that each job was begun."""
        names = [path.name.partition(".")[0] for path in (self.folder / "marks").iterdir()]
        return {name: names.count(name) for name in sorted(set(names))}

    def sums(self):
        return [self.read_part(job.name).record["sum"] for job in self.jobs()]


ONCE = {f"{t}-{what}": 1 for t in range(2) for what in (0, 1, 2, "total")}
SUMS = [0, 1, 2, 10, 11, 12]


def carried(sweep: Sums, how: Engine) -> list[str]:
    lines: list[str] = []
    with how.open(sweep) as (executor, at_once):
        carry_out(sweep, executor, at_once=at_once, progress=lines.append)
    return lines
