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
from typing import Any

import numpy as np

import fairbilevel as fb
from experiments import _write
from fairbilevel import deploy, masks

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


def shares(lines: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Of each variant its shares of the dense network and how many times as fast."""
    titles = {f"{e}_{b}": f"{words}, batch {b}" for e, words in _ENGINES.items() for b in (1, 32)}
    titles = {w: t for w, t in titles.items() if any(f"{w}_ms" in line for line in lines)}
    titles |= {f"sparse_jax_{b}": f"JAX, zeros skipped, batch {b}" for b in (1, 32)}
    out = []
    for line in lines:
        row = {"model": line["model"], "removed": line["variant"]}
        for key, title in _COUNTS.items():
            if line[key] is not None:
                row[title] = f"{100 * line[key] / line[f'dense_{key}']:.1f} %"
        for way, title in titles.items():
            row[title] = ""
            if f"{way}_ms" in line:
                now, dense = line[f"{way}_ms"], line[f"dense_{way}_ms"]
                unclear = "" if line[f"{way}_clear"] else " (unclear)"
                row[title] = f"{dense:.3g} to {now:.3g} ms: x {dense / now:.2f}{unclear}"
        out.append(row)
    return out


def parser() -> argparse.ArgumentParser:
    """Of the command line; ``seconds`` are those of timing a variant."""
    made = _write.parser(__doc__, seconds=8.0)
    made.add_argument("--only", action="append", choices=FAMILIES)
    return made


def main() -> None:
    options = parser().parse_args()
    lines: list[dict[str, Any]] = []
    for name in options.only or FAMILIES:
        lines += measure(name, options.seconds)
        _write.publish(
            options.out / "bench_deploy",
            lines,
            "# What pruning buys where a network is served",
            _write.table(shares(lines)),
            "Shares and factors are of the dense network, timed in the same rounds; single weights "
            "are counted by what is left of them. Unclear: the middle halves of the rounds "
            "overlap.",
        )


if __name__ == "__main__":
    main()
