"""What pruning buys where a network is served: file size and latency, for every family.

    python -m experiments.bench_deploy
    python -m experiments.bench_deploy --only resnet18 --only vit

Networks of their published widths on images of 32 pixels (``mlp``: 784 numbers, 2,048 neurons),
untrained: time depends on shapes and zeros alone. Beside the dense network stand half and seven
tenths of the filters removed (an equal share of every set), the same with channel counts that are
multiples of 8, half of the residual blocks that can go, and 95 % of single weights. Milliseconds
are medians of interleaved rounds, by JAX on the present device and, where it is installed, by ONNX
Runtime on the CPU. Writes ``results/bench_deploy``.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fairbilevel as fb
from fairbilevel import deploy, devices, masks
from fairbilevel.records import write_text
from fairbilevel.run import machine, versions

OUT = Path(__file__).parent / "results"
FAMILIES = (
    "mlp", "cnn", "resnet10", "resnet18", "cifar-resnet56", "mobilenetv2", "vgg19", "vit",
)  # fmt: skip
VARIANTS = {  # granularity, share removed, multiple of kept channels
    "dense": ("weight", 0.0, 1),
    "filters 50 %": ("filter", 0.5, 1),
    "filters 70 %": ("filter", 0.7, 1),
    "filters 70 %, by 8": ("filter", 0.7, 8),
    "blocks 50 %": ("block", 0.5, 1),
    "weights 95 %": ("weight", 0.95, 1),
}
BATCHES = (1, 32)
_ROWS = 1000


def problem_of(name: str) -> fb.FairPruningProblem:
    """A problem of the family, on a few random rows."""
    rng = np.random.default_rng(0)
    shape = (784,) if name == "mlp" else (32, 32, 3)
    x = rng.normal(size=(_ROWS, *shape)).astype(np.float32)
    if name != "mlp":
        x = (np.clip(x + 3, 0, 6) * 42).astype(np.uint8)
    y, group = np.arange(_ROWS) % 10, np.arange(_ROWS) // 10 % 2
    width = 2048 if name == "mlp" else None
    return fb.FairPruningProblem(name, x, y, group, width=width)


def pruned(
    problem: fb.FairPruningProblem, granularity: Any, share: float, multiple: int
) -> deploy.ModelFiles:
    """The untrained network without an equal share of every layer's units, the smallest."""
    network, layers = problem.initial_network(), problem.layers
    scores = masks.magnitude(network.params, layers, granularity)
    method = fb.BilevelSolver(
        sparsity=share,
        granularity=granularity,
        budget="global" if granularity == "block" else "uniform",
        round_channels=multiple,
    )
    allocation = method.allocation(problem)
    hard = allocation.budget.top_k(scores, masks.as_counts(allocation.keep(share, scores)))
    sparse = fb.Network(masks.apply(hard, network.params, layers, granularity), network.state)
    return deploy.ModelFiles(
        problem.model,
        sparse,
        network,
        hard,
        problem.encoder,
        deploy.model_description(problem, granularity),
    )


def measure(name: str, seconds: float) -> list[dict[str, Any]]:
    """A line for each variant of a family."""
    problem, lines = problem_of(name), []
    calls: dict[Any, Callable[[], Any]] = {}
    with_onnx = find_spec("jax2onnx") is not None and find_spec("onnxruntime") is not None
    with tempfile.TemporaryDirectory() as folder:
        for variant, (granularity, share, multiple) in VARIANTS.items():
            if not problem.layers.units(granularity):
                continue
            files = pruned(problem, granularity, share, multiple)
            left = deploy.compact(files)
            quick = granularity == "weight" and share > 0
            forward = jax.jit(deploy.forward(left, sparse_layers=quick))
            cost = masks.cost(
                problem.model.apply,
                files.dense.params,
                files.dense.state,
                jax.ShapeDtypeStruct((1, *problem.encoder.input_shape), problem.encoder.dtype),
                problem.layers,
                files.masks,
                granularity,
            )
            path = Path(folder) / f"{len(lines)}.npz"
            some = problem.data.inputs[:32]
            line = {
                "model": name,
                "variant": variant,
                "parameters": cost.parameters,
                "multiply_adds": cost.multiply_adds,
            }
            deploy.write_artifact(files, path, inputs=some)
            line["npz_bytes"] = path.stat().st_size
            rows = problem.encoder.normalize(jax.numpy.asarray(problem.inputs[:32]))
            for batch in BATCHES:
                x = rows[:batch]
                calls[variant, "jax", batch] = lambda f=forward, x=x: f(x).block_until_ready()
            if with_onnx:
                made = deploy.write_artifact(files, path.with_suffix(".onnx"), inputs=some)
                line["onnx_bytes"] = made.path.stat().st_size
                raw = made.rows(some)
                for batch in BATCHES:
                    x = raw[:batch]
                    calls[variant, "onnx", batch] = lambda run=made._run, x=x: run(x)
            lines.append(line)
        places = list(dict.fromkeys(key[1:] for key in calls))
        times: dict[Any, devices.Times] = {}
        for place in places:
            some = {key: call for key, call in calls.items() if key[1:] == place}
            times |= devices.timed(some, seconds=seconds / len(places))
    for line in lines:
        for engine in ("jax", "onnx") if with_onnx else ("jax",):
            for batch in BATCHES:
                line[f"{engine}_ms_{batch}"] = times[line["variant"], engine, batch].median
    return lines


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Markdown: of each variant its shares of the dense network and its gains in time."""
    shown = [k for k in ("npz_bytes", "onnx_bytes") if k in lines[0]]
    timed = [k for k in lines[0] if "_ms_" in k]
    titles = {"npz_bytes": "npz", "onnx_bytes": "ONNX file"} | {
        k: f"{'JAX' if k.startswith('jax') else 'ONNX Runtime'}, batch {k.rsplit('_', 1)[1]}: ms"
        for k in timed
    }
    out = ["| model | variant | parameters | multiply-adds | "
           + " | ".join(titles[k] for k in (*shown, *timed)) + " |",
           "|---" * (4 + len(shown) + len(timed)) + "|"]  # fmt: skip
    dense: dict[str, Any] = {}
    for line in lines:
        dense = line if line["variant"] == "dense" else dense
        cells = [
            f"{100 * line[k] / dense[k]:.1f} %" for k in ("parameters", "multiply_adds", *shown)
        ]
        cells += [f"{line[k]:.3g} (x {dense[k] / line[k]:.2f})" for k in timed]
        out.append(f"| {line['model']} | {line['variant']} | {' | '.join(cells)} |")
    return out


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description="Size and latency of what is served.")
    parser.add_argument("--only", action="append", choices=FAMILIES)
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring a family")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for name in options.only or FAMILIES:
        lines += measure(name, options.seconds)
        print("\n".join(table([line for line in lines if line["model"] == name])), flush=True)
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_text(options.out / "bench_deploy.csv", stream.getvalue())
        of = " ".join(f"{k} {v}" for k, v in versions().items())
        here = machine()
        words = " ".join(["python -m experiments.bench_deploy", *sys.argv[1:]])
        made = f"Made by `{words}` with {of} on {here['device']}, {here['cores']} cores."
        text = ["# What pruning buys where a network is served", "", *table(lines), "",
                f"Shares and factors are of the dense network. {made}"]  # fmt: skip
        write_text(options.out / "bench_deploy.md", "\n".join(text) + "\n")


if __name__ == "__main__":
    main()
