"""Where arrays lie: rows spread over the devices of a mesh, states on all of them or sharded.

Computations keep the meaning that they have on one device (GSPMD, Xu et al. 2021): a sum over a
batch is a sum over the whole batch, wherever its rows lie. Group counts, buffers, violations,
multipliers, normalization statistics and top-k masks are therefore global by construction.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

AXIS = "data"  # the mesh's only axis


def memory() -> int:
    """Bytes that all devices have together; on CPUs those of the machines."""
    own = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [stats["bytes_limit"] for stats in own if "bytes_limit" in stats]
    if limits:
        return sum(limits) * jax.device_count() // len(limits)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * jax.process_count()


@dataclass(frozen=True)
class Placement:
    """Data parallel over a mesh of devices, parameters replicated or sharded.

    With ``shard_params`` (fully sharded data parallel, Rajbhandari et al. 2020) every array shaped
    like a parameter of two axes or more (weights, momenta, scores, masks) is split along its
    largest axis that divides; a network is gathered where a batch passes through it. Everything
    else (biases, normalization statistics, multipliers, buffers) lies on every device.

    Attributes:
        mesh: one axis, named ``AXIS``, over all devices that take part.
        shard_params: split what is shaped like a parameter, instead of a copy on every device.
        parameters: the shapes that are split; a problem fills them in.

    Raises:
        ValueError: a mesh with another axis.
    """

    mesh: Mesh
    shard_params: bool = False
    parameters: frozenset[tuple[int, ...]] = frozenset()

    def __post_init__(self) -> None:
        if self.mesh.axis_names != (AXIS,):
            raise ValueError(
                f"a placement wants a mesh with the one axis {AXIS!r}, got "
                f"{', '.join(map(repr, self.mesh.axis_names))}"
            )

    @staticmethod
    def over(
        devices: str | int | Sequence[Any] = "all", *, shard_params: bool = False
    ) -> Placement:
        """A placement over devices of the default backend.

        Args:
            devices: ``"all"``, how many of them (also as text), or the devices themselves. Where a
                default device is configured in JAX (``jax_default_device``), ``"all"`` is that one.
            shard_params: see the class.

        Raises:
            ValueError: not a number of devices that there is, or less than all of them where
                several processes run, each of which must have its share.
        """
        if not isinstance(devices, (str, int)):
            return Placement(_mesh(devices), shard_params)
        everything = jax.devices()
        if devices == "all":
            one = _configured_device() is not None and jax.process_count() == 1
            return Placement(_mesh([_default_device()] if one else everything), shard_params)
        try:
            count = int(devices)
        except ValueError:
            raise ValueError(f"devices is 'all' or a number, got {devices!r}") from None
        if not 1 <= count <= len(everything):
            raise ValueError(
                f"{count} devices were asked for, and {len(everything)} "
                f"{'is' if len(everything) == 1 else 'are'} there ({everything[0].platform})"
            )
        if jax.process_count() > 1 and count < len(everything):
            raise ValueError(
                f"{jax.process_count()} processes share {len(everything)} devices and use all of "
                f"them: leave the number of devices out, got {count}"
            )
        return Placement(_mesh(everything[:count]), shard_params)

    @property
    def count(self) -> int:
        """Number of devices."""
        return int(self.mesh.size)

    @property
    def alone(self) -> bool:
        """Whether all of it is JAX's default device, where nothing has to be placed."""
        return (
            self.count == 1
            and jax.process_count() == 1
            and self.mesh.devices.flat[0] == _default_device()
        )

    @property
    def description(self) -> str:
        """One phrase for logs: ``"4 devices, parameters replicated"``."""
        if self.count == 1:
            return "1 device"
        held, several = "sharded" if self.shard_params else "replicated", jax.process_count()
        processes = f" of {several} processes" if several > 1 else ""
        return f"{self.count} devices{processes}, parameters {held}"

    @property
    def everywhere(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def check_batch(self, batch_size: int) -> None:
        """Refuse a batch that cannot be split evenly.

        Raises:
            ValueError: it is no multiple of the number of devices.
        """
        if batch_size % self.count:
            lower = max(batch_size // self.count, 1) * self.count
            raise ValueError(
                f"a batch of {batch_size} rows cannot be split evenly over {self.count} devices: "
                f"choose a multiple of {self.count} such as {lower}, or fewer devices"
            )

    def splitting(self, shapes: Iterable[tuple[int, ...]]) -> Placement:
        """The same placement, these shapes being those of parameters."""
        return Placement(self.mesh, self.shard_params, frozenset(shapes))

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """How an array of a state lies: split if it is shaped like a parameter and that is asked
        for, else whole on every device."""
        spec: list[str | None] = [None] * len(shape)
        if self.shard_params and len(shape) > 1 and shape in self.parameters:
            axes = [axis for axis, size in enumerate(shape) if size % self.count == 0]
            if axes:
                spec[max(axes, key=lambda axis: shape[axis])] = AXIS
        return NamedSharding(self.mesh, PartitionSpec(*spec if any(spec) else ()))

    def place(self, tree: Any) -> Any:
        """States on their devices; what lies there already is not copied.

        Values must be the same in every process. Random keys are arrays like others.
        """
        return jax.tree.map(self._placed, tree)

    def _placed(self, leaf: Any) -> Array:
        leaf = on_device(leaf)
        if self.alone:
            return leaf
        sharding = self.sharding(leaf.shape)
        if leaf.sharding.device_set == sharding.device_set:
            if leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
                return leaf
            return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        # Of a host's own array each process hands over what its devices hold: nothing is sent.
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = self._from_host(np.asarray(jax.random.key_data(leaf)), self.sharding(()))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return self._from_host(np.asarray(leaf), sharding)

    @staticmethod
    def _from_host(values: np.ndarray, sharding: NamedSharding) -> Array:
        return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])

    def rows(
        self,
        read: Callable[[Int[np.ndarray, "..."]], Shaped[np.ndarray, "..."]],
        rows: Int[np.ndarray, "..."],
    ) -> Array:
        """Rows of a table on the devices, ``[..., batch, ...]``, split along the axis of the batch.

        Args:
            read: from row numbers of any shape to their entries, ``[*rows, ...]``; asked for the
                rows of this process's devices alone.
            rows: row numbers, ``[..., batch]``.
        """
        if self.alone:
            return on_device(read(rows))
        like = read(rows[..., :0])
        shape = (*rows.shape, *like.shape[rows.ndim :])
        spec = PartitionSpec(*[None] * (rows.ndim - 1), AXIS)
        return jax.make_array_from_callback(
            shape,
            NamedSharding(self.mesh, spec),
            lambda part: read(rows[part[: rows.ndim]] if part else rows),
        )

    def columns(self, size: int) -> Int[np.ndarray, " own"]:
        """Which rows of a batch of so many lie on this process's devices, in their order."""
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        parts = sharding.addressable_devices_indices_map((size,)).values()
        return np.unique(np.concatenate([np.arange(size)[part] for part in parts]))

    def split(self, x: Any) -> Any:
        """Inside compiled code: rows along the first axis stay where their devices are."""
        if self.alone or x.shape[0] % self.count:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(AXIS)))

    def whole(self, tree: Any) -> Any:
        """Inside compiled code: every array whole on every device."""
        if self.alone:
            return tree
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.everywhere), tree)

    def outputs(self, function: Callable[..., Any], *args: Any) -> Any:
        """Shardings of a compiled function's results: those of states."""
        shapes = jax.eval_shape(function, *args)
        return jax.tree.map(lambda leaf: self.sharding(leaf.shape), shapes)

    def readable(self, tree: Any) -> Any:
        """The same values where this process can read all of them.

        With several processes, arrays are gathered one after the other and given back as this
        process's own: what it does with them needs no other. A collective call: every process makes
        it. With one process nothing happens.
        """

        def gathered(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
                return leaf
            if not leaf.is_fully_replicated:
                leaf = jax.jit(lambda x: x, out_shardings=self.everywhere)(leaf)
            return jnp.asarray(np.asarray(leaf))

        return jax.tree.map(gathered, tree)


def on_device(leaf: Any) -> Array:
    """An array where JAX puts it by default; what is there already is not copied.

    Unlike ``jnp.asarray`` it compiles nothing.
    """
    return leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf)


def _mesh(devices: Sequence[Any]) -> Mesh:
    if not len(devices):
        raise ValueError("a placement wants at least one device")
    return Mesh(np.asarray(devices), (AXIS,))


def _configured_device() -> Any:
    config: Any = jax.config
    return config.jax_default_device


def _default_device() -> Any:
    """Where JAX puts arrays that nobody places."""
    configured = _configured_device()
    if configured is None:
        return jax.local_devices()[0]
    return jax.local_devices(backend=configured)[0] if isinstance(configured, str) else configured
