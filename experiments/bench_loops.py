"""What convolutions cost inside compiled loops on CPU, with and without the canonical layout.

    python -m experiments.bench_loops
    python -m experiments.bench_loops --model mobilenetv2 --width 8   # depthwise convolutions

Ratios within one run, medians of interleaved repetitions. Writes ``results/bench_loops.csv`` and
``.md``, with the model's name behind it where it is not the default.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import fairbilevel as fb
from experiments import _write
from fairbilevel import _xla, devices
from fairbilevel.run import machine

STEPS = 4


def programs(name: str, batch: int, width: int) -> tuple[dict[str, Callable[[Any], Any]], Any]:
    """Four SGD steps of a small network: in a plain scan, in a cured one, one by one."""
    model = fb.models.build(name, (32, 32, 3), 2, width=width)
    params, state = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (batch, 32, 32, 3))
    y = jax.random.randint(jax.random.key(2), (batch,), 0, 2)

    def loss(values: Any, statistics: Any) -> Any:
        logits, statistics = model.apply(values, statistics, x, True, jax.random.key(0))
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)), statistics

    def step(carry: Any, _: Any = None) -> tuple[Any, None]:
        values, statistics = carry
        gradient, statistics = jax.grad(loss, has_aux=True)(values, statistics)
        return (jax.tree.map(lambda p, g: p - 0.05 * g, values, gradient), statistics), None

    single = jax.jit(lambda carry: step(carry)[0])

    def one_by_one(carry: Any) -> Any:
        for _ in range(STEPS):
            carry = single(carry)
        return carry

    return {
        "one by one": one_by_one,
        "scan, plain": jax.jit(lambda c: jax.lax.scan(step, c, None, STEPS)[0]),
        "scan, canonical convolutions": jax.jit(lambda c: _xla.scan(step, c, None, STEPS)[0]),
    }, (params, state)


def main() -> None:
    given: dict[str, Any] = {"model": "resnet10", "batch": 64, "width": 16, "repetitions": 3}
    options = _write.parser(__doc__, **given).parse_args()
    runs, start = programs(options.model, options.batch, options.width)
    results: dict[str, Any] = {}

    def call(name: str) -> None:
        results[name] = jax.block_until_ready(runs[name](start))

    times = devices.timed({n: partial(call, n) for n in runs}, rounds=options.repetitions)
    medians = {name: t.median / 1e3 for name, t in times.items()}

    def apart(a: Any, b: Any) -> float:
        """Several steps amplify rounding, so parameters are compared to their own size."""
        return float(jnp.max(jnp.abs(a - b)) / (jnp.max(jnp.abs(a)) + 1e-12))

    rows = []
    for name, seconds in medians.items():
        errors = jax.tree.leaves(jax.tree.map(apart, results["one by one"], results[name]))
        ratio = round(seconds / medians["one by one"], 2)
        row = {"program": name, "seconds": round(seconds, 4), "ratio to one by one": ratio}
        rows.append({**row, "largest relative difference": f"{max(errors):.1e}"})
    gain = medians["scan, plain"] / medians["scan, canonical convolutions"]
    _write.publish(
        options.out / f"bench_loops{'' if options.model == 'resnet10' else f'_{options.model}'}",
        rows,
        f"# {STEPS} SGD steps of {options.model} (width {options.width}, 32x32, batch "
        f"{options.batch}) on {machine()['device']}, {machine()['cores']} cores",
        _write.table(rows),
        f"The canonical layout makes the scan {gain:.1f} times faster (medians of "
        f"{options.repetitions} interleaved repetitions).",
    )


if __name__ == "__main__":
    main()
