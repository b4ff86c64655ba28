"""What pruning buys where a network is served: file size and latency, for every family.

    python -m experiments.bench_deploy
    python -m experiments.bench_deploy --only resnet18 --only vit

Networks of their published widths on images of 32 pixels (``mlp``: 784 numbers, 2,048 neurons),
untrained: time depends on shapes and zeros alone. Removed are half and seven tenths of the filters
(an equal share of every set), the same with channel counts that are multiples of 8, half of the
residual blocks that can go, and 95 % of single weights. Each is timed beside the dense network in
interleaved rounds (``fb.profile``), by JAX on the present device and, where it is installed, by
ONNX Runtime on the CPU. Writes ``results/bench_deploy``.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fairbilevel as fb
from fairbilevel import deploy, masks
from fairbilevel.records import write_text
from fairbilevel.run import machine, versions

OUT = Path(__file__).parent / "results"
FAMILIES = (
    "mlp", "cnn", "resnet10", "resnet18", "cifar-resnet56", "mobilenetv2", "vgg19", "vit",
)  # fmt: skip
VARIANTS = {  # granularity, share removed, multiple of kept channels
    "filters 50 %": ("filter", 0.5, 1),
    "filters 70 %": ("filter", 0.7, 1),
    "filters 70 %, by 8": ("filter", 0.7, 8),
    "blocks 50 %": ("block", 0.5, 1),
    "weights 95 %": ("weight", 0.95, 1),
}
_ROWS = 1000
_COUNTS = {
    "kept_parameters": "parameters",
    "kept_multiply_adds": "multiply-adds",
    "compressed_bytes": "npz",
    "onnx_bytes": "ONNX file",
}
_ENGINES = {"jax": "JAX", "onnxruntime": "ONNX Runtime"}


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
    """The untrained network without the smallest units: an equal share of every layer's."""
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
    return deploy.ModelFiles(
        problem.model,
        fb.Network(masks.apply(hard, network.params, layers, granularity), network.state),
        network,
        hard,
        problem.encoder,
        deploy.model_description(problem, granularity),
    )


def measure(name: str, seconds: float) -> list[dict[str, Any]]:
    """A line for each variant of a family, beside its dense network."""
    problem, lines = problem_of(name), []
    for variant, (granularity, share, multiple) in VARIANTS.items():
        if not problem.layers.units(granularity):
            continue
        found = deploy.measure(pruned(problem, granularity, share, multiple), seconds=seconds)
        line: dict[str, Any] = {"model": name, "variant": variant}
        for key in _COUNTS:
            line |= {f"dense_{key}": getattr(found.dense, key), key: getattr(found.pruned, key)}
        for speed in found.speeds:
            if speed.network == "dense":
                continue
            dense, way = found.dense_beside(speed), f"{speed.engine}_{speed.batch}"
            if speed.network == "sparse layers":
                way = f"sparse_{way}"
            line |= {f"dense_{way}_ms": dense.times.median, f"{way}_ms": speed.times.median}
            line[f"{way}_clear"] = speed.beside(dense)[1]
        lines.append(line)
    return lines


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Markdown: of each variant its shares of the dense network and how many times as fast."""
    ways = [f"{engine}_{batch}" for engine in _ENGINES for batch in (1, 32)]
    timed = [w for w in ways if any(f"{w}_ms" in line for line in lines)]
    counts = [key for key in _COUNTS if lines[0][key] is not None]
    titles = [_COUNTS[key] for key in counts]
    titles += [f"{_ENGINES[e]}, batch {b}" for e, b in (way.rsplit("_", 1) for way in timed)]
    sparse = [f"sparse_jax_{batch}" for batch in (1, 32)]
    titles += [f"JAX, zeros skipped, batch {batch}" for batch in (1, 32)]
    out = [
        "| model | removed | " + " | ".join(titles) + " |",
        "|---" * (2 + len(titles)) + "|",
    ]
    for line in lines:
        cells = [f"{100 * line[key] / line[f'dense_{key}']:.1f} %" for key in counts]
        for way in (*timed, *sparse):
            if f"{way}_ms" not in line:
                cells.append("")
                continue
            now, dense = line[f"{way}_ms"], line[f"dense_{way}_ms"]
            unclear = "" if line[f"{way}_clear"] else " (unclear)"
            cells.append(f"{dense:.3g} to {now:.3g} ms: x {dense / now:.2f}{unclear}")
        out.append(f"| {line['model']} | {line['variant']} | {' | '.join(cells)} |")
    return out


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="Size and latency of what is served.")
    parser.add_argument("--only", action="append", choices=FAMILIES)
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing a variant")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser


def main() -> None:
    """Measure, write, print."""
    options = parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for name in options.only or FAMILIES:
        lines += measure(name, options.seconds)
        print("\n".join(table([line for line in lines if line["model"] == name])), flush=True)
        stream = io.StringIO()
        names = list(dict.fromkeys(key for line in lines for key in line))
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_text(options.out / "bench_deploy.csv", stream.getvalue())
        of = " ".join(f"{k} {v}" for k, v in versions().items())
        here = machine()
        words = " ".join(["python -m experiments.bench_deploy", *sys.argv[1:]])
        made = f"Made by `{words}` with {of} on {here['device']}, {here['cores']} cores."
        text = [
            "# What pruning buys where a network is served",
            "",
            *table(lines),
            "",
            "Shares and factors are of the dense network, timed in the same rounds; single weights "
            "are counted by what is left of them. Unclear: the middle halves of the rounds "
            f"overlap. {made}",
        ]
        write_text(options.out / "bench_deploy.md", "\n".join(text) + "\n")


if __name__ == "__main__":
    main()
