"""The bilinear outer step by itself: steps a second, share of the chip's peak, vmapped frontiers.

    python -m experiments.bench_bilinear                       # a quick look, on CPU
    python -m experiments.bench_bilinear --suite accelerator   # ResNet-18, 64x64, batch 512
    python -m experiments.bench_bilinear --suite accelerator --dtype bfloat16 --torch

``--torch`` runs the same two-pass algorithm as a plain PyTorch eager loop beside it (channels last,
the same precision, the same network, batch, sparsity and update rules); PyTorch is no dependency of
the project: ``pip install torch`` first. Writes ``results/bench_bilinear_MODEL_DTYPE.csv`` and
``.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from typing import Any

import jax
import jax.numpy as jnp

from experiments import _write
from experiments._outer_steps import SPARSITY, Problem, Suite, step_program
from experiments.bench_hypergradient import SUITES
from fairbilevel import _numbers, devices, masks
from fairbilevel.hypergrad import Bilinear
from fairbilevel.run import machine

QUICK = Suite("resnet10", 32, 16, 64, 0, False, 5)
FRONTIER = 4
BLOCKS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2)}  # written in PyTorch
# Dense matrix products, in TFLOP/s, from the makers' data sheets: float32 on tensor cores (TF32)
# and bfloat16.
PEAKS = {
    "H200": (494.7, 989.4),
    "H100": (494.7, 989.4),
    "A100": (156.0, 312.0),
    "L4": (60.0, 121.0),
}


def seconds_of(call: Any, rounds: int) -> float:
    """Median time of a call."""
    return devices.timed({"call": call}, rounds=rounds)["call"].median / 1e3


def ours(problem: Problem, rounds: int, networks: int = 1) -> float:
    """Seconds of an outer step, compiled and donated, its state carried from step to step; of
    several networks side by side, on the same batches."""
    program = step_program(problem, Bilinear(), "", None)
    carry, fit, select = program.arguments
    step = program.function
    if networks > 1:
        step = jax.vmap(step, (0, None, None))
        carry = jax.tree.map(lambda leaf: jnp.stack([leaf] * networks), carry)
    compiled = jax.jit(step, donate_argnums=0).lower(carry, fit, select).compile()
    state = {"carry": jax.tree.map(jnp.copy, carry)}

    def call() -> None:
        state["carry"], _ = jax.block_until_ready(compiled(state["carry"], fit, select))

    return seconds_of(call, rounds)


def operations(problem: Problem) -> float:
    """Of both passes, by the model's multiply-adds: forward, and twice that backward. Compilers
    count what they call from libraries in different ways; norms and updates are left out."""
    sample = problem.fit[0][:1]
    found = masks.cost(problem.model.apply, problem.params, problem.state, sample)
    rows = len(problem.fit[0]) + len(problem.select[0])
    return 2.0 * 3.0 * rows * found.dense_multiply_adds


def torch_eager(suite: Suite, dtype: str, rounds: int) -> float:
    """The same algorithm as a plain PyTorch loop."""
    import torch
    from torch import nn
    from torch.nn import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int):
            super().__init__()
            self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.first_norm = nn.BatchNorm2d(outputs)
            self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.second_norm = nn.BatchNorm2d(outputs)
            self.short = None
            if stride > 1 or inputs != outputs:
                self.short = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: Any) -> Any:
            y = functional.relu(self.first_norm(self.first(x)))
            y = self.second_norm(self.second(y))
            return functional.relu(y + (x if self.short is None else self.short(x)))

    stages: list[nn.Module] = [
        nn.Conv2d(3, suite.width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(suite.width),
        nn.ReLU(),
    ]
    inputs = suite.width
    for stage, count in enumerate(BLOCKS[suite.model]):
        for block in range(count):
            outputs = suite.width * 2**stage
            stages.append(Block(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    stages += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 2)]
    model = nn.Sequential(*stages).to(device, memory_format=torch.channels_last)
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    prunable = [n for n, p in params.items() if p.ndim == 4]
    scores = {n: params[n].abs() / params[n].std() for n in prunable}
    momentum = {n: torch.zeros_like(p) for n, p in params.items()}
    score_momentum = {n: torch.zeros_like(s) for n, s in scores.items()}
    kept = sum(s.numel() for s in scores.values())
    kept -= int(SPARSITY * kept + 1e-9)
    low = torch.bfloat16 if dtype == "bfloat16" else torch.float32

    def batch() -> tuple[Any, Any]:
        x = torch.randn(suite.batch, 3, suite.size, suite.size, device=device, dtype=low)
        x = x.to(memory_format=torch.channels_last)
        return x, torch.randint(0, 2, (suite.batch,), device=device)

    fit, select = batch(), batch()

    def gradient(z: dict[str, Any], data: tuple[Any, Any]) -> dict[str, Any]:
        z = {n: v.requires_grad_() for n, v in z.items()}
        with torch.autocast(device, low, enabled=low != torch.float32):
            logits = torch.func.functional_call(model, z, (data[0],))
        loss = functional.cross_entropy(logits.float(), data[1])
        return dict(zip(z, torch.autograd.grad(loss, list(z.values())), strict=True))

    def step() -> None:
        with torch.no_grad():
            flat = torch.cat([s.flatten() for s in scores.values()])
            threshold = torch.topk(flat, kept, sorted=True).values[-1]
            masks = {n: (s >= threshold).to(s.dtype) for n, s in scores.items()}
            z = {n: p * masks[n] if n in masks else p.clone() for n, p in params.items()}
        up, down = (gradient({n: v.detach().clone() for n, v in z.items()}, data)
                    for data in (select, fit))  # fmt: skip
        with torch.no_grad():
            for n, s in scores.items():
                g = params[n] * up[n] - down[n] * (masks[n] * up[n])
                score_momentum[n].mul_(0.9).add_(g)
                s.sub_(score_momentum[n], alpha=0.01)
            for n, p in params.items():
                g = down[n] * masks[n] if n in masks else down[n]
                momentum[n].mul_(0.9).add_(g)
                p.sub_(momentum[n], alpha=0.05)
        if device == "cuda":
            torch.cuda.synchronize()

    return seconds_of(step, rounds)


def parser() -> argparse.ArgumentParser:
    """Of the command line; size, width and batch come in the place of the suite's."""
    made = _write.parser(__doc__, size=int, width=int, batch=int, rounds=20, torch=False)
    made.add_argument("--suite", choices=("quick", "accelerator"), default="quick")
    made.add_argument("--model", choices=("resnet10", "resnet18", "resnet50"))
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return made


def main() -> None:
    options = parser().parse_args()
    suite = QUICK if options.suite == "quick" else SUITES["accelerator"]
    names = ("model", "size", "width", "batch")
    asked = {n: v for n in names if (v := getattr(options, n)) is not None}
    suite = dataclasses.replace(suite, **asked)
    if options.torch and suite.model not in BLOCKS:
        parser().error(f"--torch knows {' and '.join(BLOCKS)} alone")
    problem = Problem(suite, jnp.dtype(options.dtype), suite.batch)
    kind = jax.devices()[0].device_kind
    peak = next((p for name, p in PEAKS.items() if name in kind), None)
    mine = ours(problem, options.rounds)
    speed = operations(problem) / mine / 1e12
    timed = {
        "bilinear outer step": (mine, 1),
        f"{FRONTIER} networks vmapped": (ours(problem, options.rounds, FRONTIER), FRONTIER),
    }
    if options.torch:
        import torch

        name = f"PyTorch {torch.__version__.split('+')[0]}, eager"
        timed[name] = torch_eager(suite, options.dtype, options.rounds), 1
    rows = [
        {
            "program": name,
            "ms": round(1e3 * seconds, 3),
            "steps/s": round(steps / seconds, 2),
            "TFLOP/s": "",
            "share of peak": "",
            "beside ours": round(seconds / steps / mine, 2),
        }
        for name, (seconds, steps) in timed.items()
    ]
    rows[0]["TFLOP/s"] = round(speed, 3)
    if peak is not None:
        rows[0]["share of peak"] = _numbers.percent(speed / peak[options.dtype == "bfloat16"])
    _write.publish(
        options.out / f"bench_bilinear_{suite.model}_{options.dtype}",
        rows,
        f"# The bilinear outer step: {suite.model}, width {suite.width}, {suite.size} pixels, "
        f"batch {suite.batch}, {options.dtype}",
        f"On {kind}, {machine()['cores']} cores, {datetime.date.today().isoformat()}. Operations "
        "are those of convolutions and products, forward and twice that backward; medians.",
        _write.table(rows),
    )


if __name__ == "__main__":
    main()
