"""Killed at any moment, a run ends as if nothing had happened: the kill test.

    python -m experiments.crash_safety
    python -m experiments.crash_safety --kills 20 -- --data digits --model mlp --width 16

``fairbilevel solve`` runs once undisturbed, then again and again: each time it gets SIGKILL at a
random moment between its start and its end, is started again by the same command, and its masks,
networks, metrics and result are compared with the undisturbed ones bit by bit (apart from seconds,
peak memory and the folder's name). Options behind ``--`` go to ``solve``; ``--out`` stands before
it. Writes ``results/crash_safety.csv`` and ``.md``. Exit code 1 where a run ends otherwise.
"""

from __future__ import annotations

import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _write
from fairbilevel.records import EVENTS, read_json_lines, read_object

SOLVE = (
    "--model", "cnn", "--width", "8", "--steps", "200", "--dense-steps", "200",
    "--checkpoint-every", "0",
)  # fmt: skip
# What two runs of the same numbers may differ in.
TIMES = ("seconds", "compile_seconds", "waiting", "peak_memory_mb")


def without_times(value: Any) -> Any:
    """JSON without the entries that tell time or memory, and without the command."""
    if isinstance(value, dict):
        left = {k: v for k, v in value.items() if k not in (*TIMES, "command")}
        return {k: without_times(v) for k, v in left.items()}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def differing(one: Path, other: Path) -> list[str]:
    """Files of two finished run folders that do not say the same, bit by bit."""
    found = []
    for path in sorted((one / "model").glob("*.npz")):
        with np.load(path) as a, np.load(other / "model" / path.name) as b:
            same = a.files == b.files and all(
                a[n].dtype == b[n].dtype and a[n].tobytes() == b[n].tobytes() for n in a.files
            )
        if not same:
            found.append(f"model/{path.name}")
    for name, read in (("result.json", read_object), ("metrics.jsonl", read_json_lines)):
        if without_times(read(one / name)) != without_times(read(other / name)):
            found.append(name)
    return found


def command(folder: Path, options: list[str]) -> list[str]:
    """The command line of one run."""
    return [sys.executable, "-m", "fairbilevel", "solve", *options, "--out", str(folder)]


def run(folder: Path, options: list[str]) -> float:
    """One run to its end; its seconds."""
    began = time.monotonic()
    done = subprocess.run(command(folder, options), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the run failed: {done.stderr.strip()[-500:]}")
    return time.monotonic() - began


def read_lines(path: Path) -> list[Any]:
    """Of a file that may not be there yet."""
    return read_json_lines(path) if path.is_file() else []


def kill(
    folder: Path, options: list[str], after: float, records_first: int = 0
) -> tuple[str, bool] | None:
    """Start a run and kill it so many seconds after it has written so many records: where it was;
    ``None`` if it had ended."""
    metrics = folder / "metrics.jsonl"
    process = subprocess.Popen(
        command(folder, options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while len(read_lines(metrics)) < records_first and process.poll() is None:
        time.sleep(0.01)
    try:
        process.wait(after)
        return None
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if [e["event"] for e in read_lines(folder / EVENTS)][-1:] == ["completed"]:
        return None  # nothing was left to do but to exit
    records = read_lines(metrics)
    during = f"{records[-1]['phase']} {records[-1]['step']}" if records else ""
    return during, (folder / "checkpoints").is_dir()


def kills(count: int, options: list[str], seed: int, scratch: Path) -> list[dict[str, Any]]:
    """``count`` kills at random moments, each followed by the same command again: the seconds after
    the start, phase and step of the last record before it (empty before the first), whether there
    were checkpoints to go on from, and the files that differ from the undisturbed run's."""
    undisturbed = scratch / "undisturbed"
    run(undisturbed, options)  # compiles into caches, if there are any
    lasts = run(scratch / "again", options)
    if found := differing(undisturbed, scratch / "again"):
        raise RuntimeError(f"two undisturbed runs differ in {', '.join(found)}")
    print(f"undisturbed: {lasts:.1f} s, twice the same", flush=True)
    draw, done = random.Random(seed), list[dict[str, Any]]()
    while len(done) < count:
        folder = scratch / f"killed-{len(done)}"
        after = draw.uniform(0.02, 1.0) * lasts
        place = kill(folder, options, after)
        if place is None:  # it had ended: no kill
            subprocess.run(["rm", "-rf", str(folder)], check=True)
            continue
        try:
            run(folder, options)
            found = differing(undisturbed, folder)
        except RuntimeError as error:
            found = [str(error)]
        during, checkpoints = place
        row = {"kill": len(done) + 1, "after_seconds": f"{after:.2f}", "during": during}
        done.append({**row, "checkpoints": checkpoints, "differs": " ".join(found)})
        events = " ".join(e["event"] for e in read_lines(folder / EVENTS))
        said = "the same" if not found else f"differs in {', '.join(found)}"
        print(
            f"{len(done)}: killed after {after:.1f} s ({during or 'before the first record'}), "
            f"{events}: {said}",
            flush=True,
        )
    return done


def main() -> int:
    parser = _write.parser(__doc__, kills=20, seed=0)
    parser.add_argument("solve", nargs="*", default=list(SOLVE), help="options behind --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        done = kills(options.kills, options.solve, options.seed, Path(scratch))
    same = sum(not row["differs"] for row in done)
    _write.publish(
        options.out / "crash_safety",
        done,
        "# Killed at random moments, begun again by the same command",
        f"{same} of {len(done)} runs ended with the bit-identical masks, networks, metrics and "
        "result as the undisturbed one (seconds, peak memory and the command's folder apart); "
        f"{sum(row['checkpoints'] for row in done)} were killed once there were checkpoints, "
        f"{sum(not row['during'] for row in done)} before their first record.",
        f"Runs of `fairbilevel solve {shlex.join(options.solve)}`, moments of seed {options.seed}.",
    )
    return 0 if same == len(done) else 1


if __name__ == "__main__":
    raise SystemExit(main())
