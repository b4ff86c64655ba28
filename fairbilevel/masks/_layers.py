"""What can be pruned: kernels for single weights, coupled channels for filters, residual blocks.

No naming convention is trusted: a kernel is what a convolution or matrix product multiplies
features by, and channels are coupled by what the model's jaxpr does with them. So the same code
serves ``flax.nnx``, ``flax.linen`` and bare functions.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from jaxtyping import Int

from fairbilevel import _display, _numbers, _options
from fairbilevel.masks._axes import FIXED, FREE, Axis
from fairbilevel.masks._essential import SAME, VARIES, ZERO, Program, find_branches
from fairbilevel.masks._trace import Trace, walk

GRANULARITIES = ("weight", "filter", "block")


@dataclass(frozen=True)
class Layer:
    """A convolution or dense kernel, each entry of which can be pruned.

    Attributes:
        name: path of the kernel without its last part (``"blocks/0/conv1"``).
        kernel: path name of the kernel in the parameters.
        out_axis: axis of the kernel that holds output channels (filters, neurons, heads).
        shape: shape of the kernel, and of its mask at granularity ``weight``.
        classifier: its outputs are the logits.
        essential: without this layer the logits no longer depend on the input, so at least one of
            its weights is always kept.
    """

    name: str
    kernel: str
    out_axis: int
    shape: tuple[int, ...]
    classifier: bool = False
    essential: bool = False


@dataclass(frozen=True)
class Slice:
    """Where the entries of channels lie in one array.

    Entry ``(o * channels + c) * inner + i`` of the axis belongs to channel ``c``: ``outer`` is
    the number of pixels where a flattened image is read, ``inner`` the size of a head where heads
    and their entries share an axis.

    Attributes:
        leaf: path name of the array.
        axis: its axis.
        outer: how often the channels are repeated along the axis.
        inner: entries of one channel that lie side by side.
        state: the array belongs to the model's state, not to its parameters.
    """

    leaf: str
    axis: int
    outer: int = 1
    inner: int = 1
    state: bool = False


@dataclass(frozen=True)
class Channels:
    """Channels or heads that can be removed for real, with everything coupled to them.

    Entry ``c`` of the mask multiplies slice ``c`` of every member. A removed channel is zero
    wherever it is read, so it can be cut out of members and readers without changing a logit.

    Attributes:
        name: of the first layer that makes the channels; with ``"+2"`` behind it where two other
            layers share them.
        size: how many there are.
        kernels: path names of the kernels that make them, in the order in which data meets them.
        members: slices that the mask multiplies: kernels, biases, scales and shifts of norms.
        readers: slices that only read the channels (the next kernel), or hold their statistics.
        essential: without them the logits no longer depend on the input, so at least one is always
            kept.
    """

    name: str
    size: int
    kernels: tuple[str, ...]
    members: tuple[Slice, ...]
    readers: tuple[Slice, ...] = ()
    essential: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the mask."""
        return (self.size,)


@dataclass(frozen=True)
class Layers(Sequence[Layer]):
    """What can be pruned in a model: a sequence of its layers that knows their channels too.

    Attributes:
        kernels: the layers, in the order in which data meets them.
        channels: sets of coupled channels, in the order in which data meets them.
        blocks: residual blocks, each a set of one channel: all that its parameters hold.
    """

    kernels: tuple[Layer, ...] = ()
    channels: tuple[Channels, ...] = ()
    blocks: tuple[Channels, ...] = ()

    def units(self, granularity: str) -> tuple[Layer | Channels, ...]:
        """What has a mask of its own: each has a ``name``, a ``shape`` and may be ``essential``.

        Raises:
            ValueError: unknown granularity.
        """
        _options.one_of("granularity", granularity, GRANULARITIES)
        if granularity == "weight":
            return self.kernels
        return self.channels if granularity == "filter" else self.blocks

    def within(self, block: Channels) -> tuple[Channels, ...]:
        """Sets of channels that nothing outside a block makes or reads."""
        inside = {m.leaf for m in block.members}
        return tuple(
            c
            for c in self.channels
            if all(p.leaf in inside for p in (*c.members, *c.readers) if not p.state)
        )

    def __repr__(self) -> str:
        weights = sum(math.prod(layer.shape) for layer in self.kernels)
        kernels = f"{_numbers.counted(len(self.kernels), 'layer')} with {weights:,} weights"
        filters = sum(channels.size for channels in self.channels)
        coupled = f"{_numbers.counted(len(self.channels), 'set')} of channels, {filters:,} filters"
        blocks = _numbers.counted(len(self.blocks), "block") if self.blocks else ""
        return _display.line("Layers", kernels, coupled, blocks)

    def __len__(self) -> int:
        """Number of layers."""
        return len(self.kernels)

    def __iter__(self) -> Iterator[Layer]:
        """Over layers."""
        return iter(self.kernels)

    @overload
    def __getitem__(self, index: int) -> Layer: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Layer]: ...

    def __getitem__(self, index: Any) -> Any:
        """A layer by position."""
        return self.kernels[index]


def find_layers(apply: Callable[..., Any], params: Any, state: Any, sample: Any) -> Layers:
    """The convolution and dense layers of a model, and their coupled channels.

    Nothing is computed: only shapes matter, so ``jax.eval_shape`` results do in place of arrays.

    Channels are no unit, and stay, where removing one would change others or the meaning of what is
    left: logits, input channels, channels that a mean mixes (layer, group and RMS normalization,
    and with them the residual stream of a transformer; whole groups of a group normalization are
    units), channels whose removal leaves a constant (after a sigmoid), channels of arrays that this
    code cannot follow, and the single channel of a layer that has but one.

    Args:
        apply: ``apply(params, state, x, train, key) -> (logits, state)``.
        params: nested dictionary of arrays.
        state: normalization statistics and the like.
        sample: float ``[rows, ...]``.

    Returns:
        One ``Layer`` per kernel, classifier included (``classifier=True``), one ``Channels`` per
        set of coupled channels, and one per residual block.

    Raises:
        ValueError: no layer was found (the model multiplies its input by no parameter).
    """
    trace, closed, (out,) = walk(apply, params, state, sample)
    if not trace.found:
        raise ValueError(
            "no prunable layer found: the model multiplies its input by no parameter of two or "
            "more axes through a convolution or matrix product"
        )
    program = Program.of(closed)
    heads = _made_of(trace, out.axes[-1])
    trace.nodes.lock(*out.axes)

    def essential(leaves: set[str]) -> bool:
        start = [ZERO if la.name in leaves and not la.state else SAME for la in trace.leaves]
        start += [VARIES] * (len(closed.jaxpr.invars) - len(start))
        return program.levels_of(start)[program.results[0]] < VARIES

    kernels = tuple(
        Layer(_name(kernel), kernel, axis, shape, kernel in heads, essential({kernel}))
        for kernel, (axis, shape) in trace.found.items()
    )
    channels = tuple(
        Channels(name, size, made_by, members, readers, essential({m.leaf for m in members}))
        for name, size, made_by, members, readers in _coupled(trace)
    )
    return Layers(kernels, channels, tuple(_blocks(trace, program, len(closed.jaxpr.invars))))


def _blocks(trace: Trace, program: Program, inputs: int) -> Iterator[Channels]:
    """Residual blocks whose arrays can all be multiplied by one number each."""
    found: list[tuple[str, tuple[str, ...], tuple[Slice, ...]]] = []
    for branch in find_branches(program, inputs, len(trace.leaves)):
        own = [leaf for n in branch if not (leaf := trace.leaves[n]).state]
        made_by = tuple(k for k in trace.found if k in {leaf.name for leaf in own})
        if made_by and all(leaf.shape for leaf in own):
            members = tuple(Slice(leaf.name, 0, 1, leaf.shape[0]) for leaf in own)
            found.append((_common([leaf.name for leaf in own]), made_by, members))
    commons = [common for common, _, _ in found]
    for common, made_by, members in found:
        alone = common and commons.count(common) == 1
        yield Channels(common if alone else _name(made_by[0]), 1, made_by, members)


def _common(names: list[str]) -> str:
    """The path that all names begin with."""
    parts = [name.split("/") for name in names]
    shared = [first for first, *rest in zip(*parts, strict=False) if all(r == first for r in rest)]
    return "/".join(shared[: min(map(len, parts)) - 1])


def _name(kernel: str) -> str:
    return kernel.rsplit("/", 1)[0] if "/" in kernel else kernel


def _made_of(trace: Trace, axis: Axis) -> set[str]:
    """Kernels whose output channels are the entries of ``axis``."""
    nodes = {node for _, node in trace.nodes.resolve(axis)} - {FREE, FIXED}
    axes = {
        leaf.name: own
        for leaf, own in zip(trace.leaves, trace.leaf_axes, strict=True)
        if not leaf.state
    }
    return {
        kernel
        for kernel, (out, _) in trace.found.items()
        if nodes & {node for _, node in trace.nodes.resolve(axes[kernel][out])}
    }


def _coupled(
    trace: Trace,
) -> Iterator[tuple[str, int, tuple[str, ...], tuple[Slice, ...], tuple[Slice, ...]]]:
    """Sets of coupled channels: name, size, kernels that make them, members, readers."""
    nodes = trace.nodes
    places: dict[int, list[tuple[Slice, bool]]] = {}
    sizes: dict[int, int] = {}
    rivals: dict[str, list[int]] = {}
    for leaf, axes in zip(trace.leaves, trace.leaf_axes, strict=True):
        for at, axis in enumerate(axes):
            factors, outer = nodes.resolve(axis), 1
            raw = axis[0][1] if axis else FREE
            written = raw in trace.written
            total = leaf.shape[at]
            seen = [node for _, node in factors]
            for size, node in factors:
                if nodes.locked[node] or seen.count(node) > 1:
                    nodes.locked[node] = True
                else:
                    inner = total // (outer * size)
                    place = Slice(leaf.name, at, outer, inner, leaf.state)
                    places.setdefault(node, []).append((place, written))
                    sizes[node] = size
                    if written:
                        rivals.setdefault(leaf.name, []).append(node)
                outer *= size
    # An array whose entries could go along several axes (head, entry of the head) is pruned along
    # the first: masks on both would count its weights twice.
    order = {kernel: i for i, kernel in enumerate(trace.found)}
    dropped: set[int] = set()
    for name in sorted(rivals, key=lambda name: order.get(name, len(order))):
        left = [n for n in rivals[name] if n not in dropped and not nodes.locked[n]]
        dropped.update(left[1:])
    found = []
    for node, where in places.items():
        if nodes.locked[node] or node in dropped:
            continue
        members = tuple(place for place, written in where if written)
        readers = tuple(place for place, written in where if not written)
        made_by = tuple(sorted({m.leaf for m in members} & set(order), key=order.__getitem__))
        if made_by:
            more = f"+{len(made_by) - 1}" if len(made_by) > 1 else ""
            found.append((_name(made_by[0]) + more, sizes[node], made_by, members, readers))
    found.sort(key=lambda entry: order[entry[2][0]])
    names = [name for name, *_ in found]
    for i, entry in enumerate(found):
        # A kernel has one set of its own; only kernels of one name can repeat a name.
        repeated = names[:i].count(entry[0])
        yield (entry[0] + f" ({repeated + 1})" if repeated else entry[0], *entry[1:])


def kept_entries(
    place: Slice, kept: Int[np.ndarray, " channels"], size: int
) -> Int[np.ndarray, " entries"]:
    """Positions along a slice's axis that belong to the channels ``kept`` of ``size``."""
    grid = np.arange(place.outer * size * place.inner).reshape(place.outer, size, place.inner)
    return grid[:, kept].reshape(-1)


def select_layers(
    layers: Layers, *, prune_classifier: bool = False, keep: Sequence[str] = ()
) -> Layers:
    """The layers that pruning touches: all but the classifier unless asked, and those that stay.

    The classifier's outputs are never among the channels: logits stay.

    Args:
        layers: all of them.
        prune_classifier: single weights of the classifier may go.
        keep: names of layers that stay whole, ``*`` for anything; channels that one of them makes
            stay with it.

    Raises:
        ValueError: a name that no layer has, or nothing is left to prune (a linear model without
            ``prune_classifier``).
    """
    chosen = tuple(layer for layer in layers if prune_classifier or not layer.classifier)
    if not chosen:
        raise ValueError(
            "nothing to prune: the classifier is the model's only layer; ask for it with "
            "prune_classifier"
        )
    names = [layer.name for layer in layers]
    stays = {name for pattern in keep for name in matching(pattern, names, "keep_layer")}
    kernels = {layer.kernel for layer in layers if layer.name in stays}
    left = tuple(layer for layer in chosen if layer.name not in stays)
    if not left:
        raise ValueError("nothing to prune: keep_layer names every layer")
    channels = tuple(c for c in layers.channels if kernels.isdisjoint(c.kernels))
    blocks = tuple(b for b in layers.blocks if kernels.isdisjoint(b.kernels))
    return Layers(left, channels, blocks)


def matching(pattern: str, names: Sequence[str], what: str) -> list[str]:
    """The names that a pattern means, ``*`` standing for anything; or ``ValueError``."""
    chosen = [n for n in names if fnmatch.fnmatchcase(n, pattern)]
    if not chosen:
        known = _options.choose(pattern, names)
        raise ValueError(f"{what} names {pattern!r}, which is no prunable layer: {known}")
    return chosen
