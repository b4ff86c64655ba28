"""Everything that only an accelerator can answer, in one command of at most ten minutes.

    python -m experiments.accelerator                 # on a GPU or TPU
    python -m experiments.accelerator --data FOLDER   # with utkface48.zip in it: faces too
    python -m experiments.accelerator --dry-run       # the same stages, small, on whatever is here

Stages run one after the other, each in a process of its own with a time limit; one that fails or
runs out of time leaves the others. Each is written down when it ends, and a second call goes on
with those that did not. Writes ``results/accelerator/``: a table of the stages, what each printed,
and the files of the benchmarks.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments import _write
from fairbilevel.records import read_object, write_json, write_text
from fairbilevel.run import machine, versions

ROOT = Path(__file__).parents[1]
TOTAL = 600  # seconds of all stages together

# Most of a dry run is compilation: of code that need not be fast.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if int(version("jaxlib").split(".")[1]) < 12:  # later ones know no other way, and stop at the flag
    QUICK += " --xla_cpu_use_fusion_emitters=false"

# What is asserted of numbers, and needs no second process or browser.
CORE = ("test_hypergradient", "test_implicit", "test_masks", "test_constraints", "test_multipliers")


@dataclass(frozen=True)
class Stage:
    """One process: the name of its files, what it answers, the words behind ``python -m``, and the
    seconds after which it is ended."""

    name: str
    asks: str
    words: tuple[str, ...]
    seconds: int


def stages(dry: bool, out: Path, data: Path | None = None) -> list[Stage]:
    """In the order of what one would most like to know; small where nothing is to be measured."""
    suite: tuple[str, ...] = ("--suite", "accelerator")
    if dry:
        suite = ("--size", "16", "--width", "4", "--batch", "8", "--rounds", "2")
    beside = ("--out", str(out))
    tests = [f"tests/{name}.py" for name in CORE]
    some = ("-k", "closed_form or quadratic") if dry else ()
    tiny = ("--model", "cnn", "--size", "16", "--width", "4")
    memory = (*tiny, "--batch", "4", "--cases", "0,1") if dry else ()
    costs = ("--suite", "mlp", "--rounds", "1") if dry else ("--suite", "accelerator")
    deploy = ("--only", "cnn", "--seconds", "0.2") if dry else ("--only", "resnet18")
    feeding = ("--rows", "512", "--batch", "32", "--steps", "4", "--rounds", "1")
    out_of_core = (*tiny, *feeding) if dry else ()
    few = ("--models", "mlp", "--lanes", "2", "--rounds", "1", "--steps", "8")
    lanes = few if dry else ()
    where = () if data is None else ("--data", str(data))

    def bilinear(model: str, dtype: str) -> Stage:
        return Stage(
            f"bilinear-{model}-{dtype}",
            f"an outer step of {model} in {dtype}: steps a second, share of the peak, four "
            "networks side by side by vmap against a loop",
            ("experiments.bench_hypergradient", "--step", *suite, "--model", model,
             "--dtype", dtype, *beside),
            90,
        )  # fmt: skip

    found = [
        bilinear("resnet18", "bfloat16"),
        bilinear("resnet50", "bfloat16"),
        bilinear("resnet18", "float32"),
        Stage(
            "memory",
            "peak memory of a step, as XLA foretells it and as the device measured it",
            ("experiments.bench_memory", "--run", *memory, *beside),
            120,
        ),
        Stage(
            "hypergradients",
            "what each hypergradient costs in gradients",
            ("experiments.bench_hypergradient", *costs, "--no-rival", *beside),
            90,
        ),
        Stage(
            "demo",
            "a whole run, from rows to report",
            ("fairbilevel", "solve", "--out", str(out / "demo"), "--overwrite",
             *(("--steps", "40", "--dense-steps", "40") if dry else ())),
            60,
        ),
        Stage(
            "feeding",
            "steps a second with rows out of core, of those in memory",
            ("experiments.bench_feeding", *out_of_core, *beside),
            60,
        ),
        Stage(
            "lanes",
            "twenty repetitions side by side by vmap against one by one, of the claim's UTKFace "
            "setting too where its rows are there",
            ("experiments.bench_lanes", *lanes, *where, *beside),
            120,
        ),
        Stage("deploy", "what pruning buys where it is served",
              ("experiments.bench_deploy", *deploy, *beside), 60),
        Stage("core", "the numeric core of the tests",
              ("pytest", "-q", "-n", "0", *some, *tests), 120),
    ]  # fmt: skip
    slack = 3 if dry else 1  # nothing is measured, on whatever else the machine has to do
    found = [dataclasses.replace(s, seconds=slack * s.seconds) for s in found]
    return [s for s in found if importlib.util.find_spec(s.words[0]) is not None]


def run(stage: Stage, log: Path, limit: float) -> dict[str, Any]:
    """Run a stage, its output in ``log``; it and what it started end at the limit."""
    begin = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *stage.words],
            cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            code = process.wait(limit)
            ended = "done" if code == 0 else f"failed (exit code {code})"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"cut at {limit:.0f} s"
    return {"ended": ended, "seconds": round(time.perf_counter() - begin, 1)}


def page(found: dict[str, Any], asked: list[Stage], dry: bool) -> str:
    """Markdown: a line a stage."""
    rows = []
    for stage in asked:
        entry = found["stages"].get(stage.name, {"ended": "not begun", "seconds": ""})
        told = {"stage": stage.name, "what it asks": stage.asks, "ended": entry["ended"]}
        rows.append({**told, "seconds": entry["seconds"], "limit": stage.seconds})
    title = "# What an accelerator answers" + (" (dry run: nothing is measured)" if dry else "")
    return _write.page(title, _write.table(rows), _write.made_by())


def main() -> None:
    """Run what has not ended well yet."""
    parser = _write.parser(__doc__, None, dry_run=False, data=Path)
    parser.add_argument("--again", action="store_true", help="forget the stages that are there")
    parser.add_argument(
        "--seconds", type=float, help=f"of all stages together, {TOTAL}; a dry run ends by itself"
    )
    options = parser.parse_args()
    if options.dry_run:
        os.environ.setdefault("XLA_FLAGS", QUICK)
    name = "accelerator-dry-run" if options.dry_run else "accelerator"
    out: Path = options.out or _write.RESULTS / name
    out.mkdir(parents=True, exist_ok=True)
    asked, record = stages(options.dry_run, out, options.data), out / "stages.json"
    here = {"machine": machine(), "versions": versions()}
    found: dict[str, Any] = {**here, "stages": {}}
    if record.is_file() and not options.again:
        found = read_object(record)
        if found["machine"] != here["machine"]:
            raise SystemExit(
                f"error: {record} is of another machine ({json.dumps(found['machine'])}): give "
                "--again, or another --out"
            )
    whole = options.seconds or (sum(s.seconds for s in asked) if options.dry_run else TOTAL)
    end = time.monotonic() + whole
    for stage in asked:
        left = end - time.monotonic()
        if found["stages"].get(stage.name, {}).get("ended") == "done" or left < 5:
            continue
        print(f"{stage.name}: {stage.asks}", flush=True)
        log = out / f"{stage.name}.log"
        entry = run(stage, log, min(stage.seconds, left))
        found["stages"][stage.name] = entry
        write_json(record, found)
        write_text(out / "stages.md", page(found, asked, options.dry_run))
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        print("\n".join([*last, f"{stage.name}: {entry['ended']}, {entry['seconds']} s", ""]))
    print(page(found, asked, options.dry_run))
    if any(s.name not in found["stages"] for s in asked):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
