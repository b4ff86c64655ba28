"""How long a network takes by how many channels its layers keep: a table of measured times.

Each convolution and matrix product is timed alone, at a few counts of the channels that enter and
leave it; counts between are interpolated. What the whole dense network takes beside them (norms,
activations) is shared out over the sizes of what enters the products. Such a table belongs to one
device, one batch size and JAX; it orders networks by speed and is no promise of a time, which
``fb.profile`` measures on the network that came out.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairbilevel.devices import timed
from fairbilevel.masks._allocation import multiple_of
from fairbilevel.masks._cost import CostModel
from fairbilevel.masks._layers import Layers
from fairbilevel.masks._record import Product

_SHARES = (0.125, 0.5, 1.0)  # of a set's channels that products are timed at
_ROUNDS, _SECONDS = 9, 0.05
VERSION = 1


@dataclass(frozen=True)
class ProductTime:
    """Times of one convolution or matrix product.

    Attributes:
        kernel: the parameter that multiplies; empty where none does (attention).
        sets: names of the sets of channels that enter or leave it.
        counts: of each set, the numbers of channels it was timed at, rising.
        milliseconds: one for each combination, the last set's counts running fastest.
        entering: sets that the first operand has.
        size: entries of the first operand, dense.
    """

    kernel: str
    sets: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    milliseconds: tuple[float, ...]
    entering: tuple[str, ...]
    size: int

    def at(self, kept: Mapping[str, int]) -> float:
        """Milliseconds with so many channels by set, never less than with fewer."""
        grid = np.asarray(self.milliseconds).reshape([len(c) for c in self.counts])
        for name, counts in zip(self.sets, self.counts, strict=True):
            if not kept[name]:
                return 0.0
            place = np.interp(kept[name], counts, np.arange(len(counts)))
            below = int(place)
            above = min(below + 1, len(counts) - 1)
            grid = grid[below] + (place - below) * (grid[above] - grid[below])
        return float(grid)

    def entries(self, kept: Mapping[str, int]) -> float:
        """Of what enters, with so many channels by set."""
        whole = dict(zip(self.sets, (c[-1] for c in self.counts), strict=True))
        return self.size * math.prod(kept[name] / whole[name] for name in self.entering)


@dataclass(frozen=True)
class LatencyTable:
    """Times of a network's products on one device.

    Attributes:
        products: in the order that the network computes them.
        rest: milliseconds of the dense network beside its products.
        batch: rows a call.
        device: what it was measured on.
        digest: SHA-256 of the rest, which a run records.
    """

    products: tuple[ProductTime, ...]
    rest: float
    batch: int
    device: str
    digest: str = field(init=False, default="")

    def __post_init__(self) -> None:
        text = json.dumps(self.to_json(), sort_keys=True)
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())

    def __repr__(self) -> str:
        return f"LatencyTable({len(self.products)} products, batch {self.batch}, {self.device})"

    def of(self, model: CostModel) -> Callable[[Mapping[str, int]], float]:
        """Milliseconds of a network, as a function of how many channels (or blocks) it keeps by
        name.

        Raises:
            ValueError: the table is of another network, or single weights are counted, which no
                time depends on.
        """
        self._check(model)
        size = sum(p.size for p in self.products)

        def milliseconds(kept: Mapping[str, int]) -> float:
            counts, gone = model.channels_kept(kept)
            inside = [p for p in self.products if p.kernel not in gone]
            entering = sum(p.entries(counts) for p in inside) / size
            return sum(p.at(counts) for p in inside) + self.rest * entering

        return milliseconds

    def _check(self, model: CostModel) -> None:
        if model.granularity == "weight":
            raise ValueError(
                "single weights that are zero save no time: a target in latency needs granularity "
                "filter or block"
            )
        mine = [(p.kernel, p.sets, tuple(c[-1] for c in p.counts)) for p in self.products]
        if mine != [(p.kernel or "", *_sets(model, p)) for p in _timeable(model)]:
            raise ValueError("the table of latencies is of another network: measure it on this one")

    def to_json(self) -> dict[str, Any]:
        """What `save` writes."""
        return {
            "schema_version": VERSION,
            "device": self.device,
            "batch": self.batch,
            "rest": self.rest,
            "products": json.loads(json.dumps([vars(p) for p in self.products])),
        }

    @staticmethod
    def load(path: Path) -> LatencyTable:
        """Read a table.

        Raises:
            ValueError: no file, or no such table.
        """
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
            raise ValueError(f"no table of latencies can be read from {path}: {reason}") from None
        try:
            products = tuple(
                ProductTime(
                    str(p["kernel"]),
                    tuple(map(str, p["sets"])),
                    tuple(tuple(map(int, c)) for c in p["counts"]),
                    tuple(map(float, p["milliseconds"])),
                    tuple(map(str, p["entering"])),
                    int(p["size"]),
                )
                for p in given["products"]
            )
            found = LatencyTable(
                products, float(given["rest"]), int(given["batch"]), str(given["device"])
            )
            sound = given["schema_version"] == VERSION and all(_sound(p) for p in products)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            sound = False
        if not sound or not 0 <= found.rest < math.inf or found.batch < 1 or not products:
            raise ValueError(
                f"{path} is no table of latencies: fairbilevel profile RUN --layers FILE makes one"
            )
        return found


def _sound(p: ProductTime) -> bool:
    rising = all(c and c[0] > 0 and all(a < b for a, b in itertools.pairwise(c)) for c in p.counts)
    times = np.asarray(p.milliseconds)
    return (
        rising
        and len(p.counts) == len(p.sets)
        and times.size == math.prod(len(c) for c in p.counts)
        and bool((np.isfinite(times) & (times >= 0)).all())
        and set(p.entering) <= set(p.sets)
        and p.size > 0
    )


def measure_latency(
    apply: Callable[..., Any],
    params: Any,
    state: Any,
    sample: Any,
    layers: Layers,
    progress: Callable[[str], None] = lambda line: None,
) -> LatencyTable:
    """Time the products of a network on the present device, a second or two each.

    Args:
        apply: ``apply(params, state, x, train, key) -> (logits, state)``.
        params: nested dictionary of arrays.
        state: normalization statistics and the like.
        sample: float ``[rows, ...]``, or its shape: as many rows as a call is to have.
        layers: the model's.
        progress: is told of every product.

    Returns:
        The table, in whose terms ``sparsity_of="latency"`` is a share.
    """
    rows = np.shape(sample)[0]
    model = CostModel(apply, params, state, sample, layers, "filter", rows)
    known: dict[Any, np.ndarray] = {}
    found = []
    products = _timeable(model)
    for i, product in enumerate(products):
        names, sizes = _sets(model, product)
        counts = tuple(map(_counts, sizes))
        cases = [dict(zip(names, case, strict=True)) for case in itertools.product(*counts)]
        forms = [_form(model, product, case) for case in cases]
        key = (product.eqn.primitive.name, str(product.eqn.params), tuple(map(str, forms)))
        if key not in known:
            progress(f"{i + 1} of {len(products)}: {product.kernel or 'attention'}")
            times = _times(product, forms).reshape([len(c) for c in counts])
            known[key] = _rising(times)
        left = _factors(model, product.operands[0])
        found.append(
            ProductTime(
                product.kernel or "",
                names,
                counts,
                tuple(known[key].ravel().tolist()),
                tuple(n for n in names if n in left),
                math.prod(product.eqn.invars[0].aval.shape),
            )
        )
    together = sum(p.milliseconds[-1] for p in found)
    network = jax.jit(lambda p, s, x: apply(p, s, x, False, jax.random.key(0))[0])
    x = jnp.zeros(np.shape(sample), sample.dtype)  # a whole number may index: zero always can
    whole = {"dense": lambda: network(params, state, x).block_until_ready()}
    dense = timed(whole, rounds=_ROUNDS, seconds=0.5)["dense"].median
    device = jax.devices()[0]
    name = f"{device.platform} {device.device_kind}, {platform.machine()}, JAX {jax.__version__}"
    if dense < together:  # alone they cost more than side by side
        share = dense / together
        found = [replace(p, milliseconds=tuple(share * t for t in p.milliseconds)) for p in found]
    return LatencyTable(tuple(found), max(0.0, dense - together), rows, name)


def _timeable(model: CostModel) -> list[Product]:
    return [p for p in model.trace.products if p.operands]


def _factors(model: CostModel, axes: Any) -> list[str]:
    """Names of the sets of channels in axes, in the order they stand there."""
    names = {node: name for name, node in model.nodes.items()}
    factors = [f for axis in axes for f in model.trace.nodes.resolve(axis)]
    return list(dict.fromkeys(names[node] for _, node in factors if node in names))


def _sets(model: CostModel, product: Product) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and sizes of the sets that meet in a product."""
    found = tuple(_factors(model, [axis for axes in product.operands for axis in axes]))
    sizes = {c.name: c.size for c in model.layers.channels}
    return found, tuple(sizes[name] for name in found)


def _counts(size: int) -> tuple[int, ...]:
    step = multiple_of(size, 8)
    return tuple(sorted({min(size, math.ceil(size * s / step) * step) for s in _SHARES}))


def _form(model: CostModel, product: Product, kept: Mapping[str, int]) -> tuple[Any, ...]:
    """Shapes of both operands with so many channels by set, and what the equation is told."""
    counts = {model.nodes[name]: n for name, n in kept.items()}
    left, right = (
        [model.trace.nodes.count(axis, counts) for axis in axes] for axes in product.operands
    )
    params, name = dict(product.eqn.params), product.eqn.primitive.name
    if name == "dot_general":
        for pairs in params["dimension_numbers"]:
            for a, b in zip(*pairs, strict=True):  # as many on both sides
                left[a] = right[b] = min(left[a], right[b])
    else:
        spec = params["dimension_numbers"]
        source, entry = spec.lhs_spec[1], spec.rhs_spec[1]
        if params["feature_group_count"] == 1:
            left[source] = right[entry] = min(left[source], right[entry])
        else:
            groups = max(1, left[source] // right[entry])
            params["feature_group_count"] = groups
            left[source] = groups * right[entry]
            target = spec.rhs_spec[0]
            right[target] = max(1, right[target] // groups) * groups
    return tuple(left), tuple(right), params


def _times(product: Product, forms: list[tuple[Any, ...]]) -> np.ndarray:
    """Milliseconds of each form, without what a call costs by itself."""
    kinds = [v.aval.dtype for v in product.eqn.invars]

    def call(form: tuple[Any, ...]) -> Callable[[], Any]:
        left, right, params = form
        operands = [jnp.ones(s, kind) for s, kind in zip((left, right), kinds, strict=True)]

        def run(a: Any, b: Any) -> Any:
            how = product.eqn.primitive.get_bind_params(params)
            functions, options = how if isinstance(how, tuple) else ([], how)
            return product.eqn.primitive.bind(*functions, a, b, **options)

        compiled = jax.jit(run).lower(*operands).compile()
        return lambda: compiled(*operands).block_until_ready()

    nothing = jax.jit(lambda a: a + 1).lower(jnp.ones(1)).compile()
    one = jnp.ones(1)
    calls: dict[int, Callable[[], Any]] = {i: call(form) for i, form in enumerate(forms)}
    calls[-1] = lambda: nothing(one).block_until_ready()
    found = timed(calls, rounds=_ROUNDS, seconds=_SECONDS)
    return np.array([max(0.0, found[i].median - found[-1].median) for i in range(len(forms))])


def _rising(grid: np.ndarray) -> np.ndarray:
    """What is measured of fewer channels, where it is more: noise, and no reason to keep them."""
    for axis in range(grid.ndim):
        grid = np.maximum.accumulate(grid, axis)
    return grid
