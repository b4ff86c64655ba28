"""The built-in classifiers, written in ``flax.nnx``: MLP, a small CNN, ResNet-10 and ResNet-18."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fairbilevel.models._model import Model, from_nnx

# The field's usual value; Flax's 0.99 would still remember the dense network's statistics hundreds
# of steps after pruning changed them.
_norm = partial(nnx.BatchNorm, momentum=0.9)


class MLP(nnx.Module):
    """Dense layers with ReLU; images are flattened.

    Args:
        features: inputs a row.
        classes: outputs.
        hidden: neurons of each hidden layer.
        rngs: where the initial weights come from.
    """

    def __init__(
        self, features: int, classes: int, hidden: Sequence[int] = (256, 128), *, rngs: nnx.Rngs
    ):
        sizes = (features, *hidden)
        self.hidden = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.classifier = nnx.Linear(sizes[-1], classes, rngs=rngs)

    def __call__(self, x: Float[Array, "rows ..."]) -> Float[Array, "rows classes"]:
        """Logits."""
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.classifier(x)


class CNN(nnx.Module):
    """Three convolutions with batch normalization, the last two halving the image, then a mean.

    Args:
        channels: input channels.
        classes: outputs.
        width: output channels of the first convolution, doubled by each next one.
        rngs: where the initial weights come from.
    """

    def __init__(self, channels: int, classes: int, width: int = 16, *, rngs: nnx.Rngs):
        sizes = (channels, width, 2 * width, 4 * width)
        self.convolutions = nnx.List(
            [
                nnx.Conv(a, b, (3, 3), 1 if i == 0 else 2, use_bias=False, rngs=rngs)
                for i, (a, b) in enumerate(itertools.pairwise(sizes))
            ]
        )
        self.norms = nnx.List([_norm(b, rngs=rngs) for b in sizes[1:]])
        self.classifier = nnx.Linear(sizes[-1], classes, rngs=rngs)

    def __call__(self, x: Float[Array, "rows height width channels"]) -> Float[Array, "rows c"]:
        """Logits."""
        for conv, norm in zip(self.convolutions, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.classifier(x.mean((1, 2)))


class _BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv1 = conv(inputs, outputs, (3, 3), stride)
        self.norm1 = _norm(outputs, rngs=rngs)
        self.conv2 = conv(outputs, outputs, (3, 3))
        self.norm2 = _norm(outputs, rngs=rngs)
        self.project = stride != 1 or inputs != outputs
        if self.project:
            self.shortcut = conv(inputs, outputs, (1, 1), stride)
            self.shortcut_norm = _norm(outputs, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (self.shortcut_norm(self.shortcut(x)) if self.project else x))


class ResNet(nnx.Module):
    """A residual network of basic blocks (He et al. 2016).

    Args:
        blocks: blocks of each of the four stages: ``(1, 1, 1, 1)`` is ResNet-10,
            ``(2, 2, 2, 2)`` ResNet-18.
        channels: input channels.
        classes: outputs.
        width: channels of the first stage, doubled by each next one; 64 in the paper.
        small_images: a 3x3 first convolution without pooling instead of the 7x7 one with it, as is
            usual up to 64 pixels.
        rngs: where the initial weights come from.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        channels: int,
        classes: int,
        width: int = 64,
        small_images: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        size, stride = ((3, 3), 1) if small_images else ((7, 7), 2)
        self.stem = nnx.Conv(channels, width, size, stride, use_bias=False, rngs=rngs)
        self.stem_norm = _norm(width, rngs=rngs)
        self.pool = not small_images
        stages, inputs = [], width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(_BasicBlock(inputs, outputs, stride, rngs=rngs))
                inputs = outputs
        self.blocks = nnx.List(stages)
        self.classifier = nnx.Linear(inputs, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "rows height width channels"]) -> Float[Array, "rows c"]:
        """Logits."""
        x = nnx.relu(self.stem_norm(self.stem(x)))
        if self.pool:
            x = nnx.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((1, 2)))


_Builder = Callable[[tuple[int, ...], int, int | None], Callable[[nnx.Rngs], nnx.Module]]


def _mlp(shape: tuple[int, ...], classes: int, width: int | None) -> Callable[..., nnx.Module]:
    features = int(jnp.prod(jnp.array(shape)))
    first = 256 if width is None else width
    hidden = (first, max(first // 2, 1))
    return lambda rngs: MLP(features, classes, hidden, rngs=rngs)


def _cnn(shape: tuple[int, ...], classes: int, width: int | None) -> Callable[..., nnx.Module]:
    return lambda rngs: CNN(shape[-1], classes, width or 16, rngs=rngs)


def _resnet(*blocks: int) -> _Builder:
    def build(shape: tuple[int, ...], classes: int, width: int | None) -> Callable[..., nnx.Module]:
        small = max(shape[:2]) <= 64
        return lambda rngs: ResNet(blocks, shape[-1], classes, width or 64, small, rngs=rngs)

    return build


_ZOO: dict[str, _Builder] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "resnet10": _resnet(1, 1, 1, 1),
    "resnet18": _resnet(2, 2, 2, 2),
}

NAMES = tuple(_ZOO)


def build(
    name: str, input_shape: Sequence[int], classes: int, *, width: int | None = None
) -> Model:
    """A built-in model by name.

    Args:
        name: one of ``fb.models.NAMES``.
        input_shape: shape of one row: ``(height, width, channels)`` or ``(features,)``.
        classes: number of logits.
        width: channels of the first stage (``cnn`` 16, ``resnet*`` 64) or neurons of the first
            hidden layer (``mlp`` 256); the default where ``None``.

    Raises:
        ValueError: unknown name (with the nearest one), an image model on rows that are not
            images, or a width below 1.
    """
    if name not in _ZOO:
        near = difflib.get_close_matches(name.lower(), _ZOO, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown model {name!r}: {hint}choose from {', '.join(_ZOO)}")
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    shape = tuple(int(n) for n in input_shape)
    if name != "mlp" and len(shape) != 3:
        raise ValueError(
            f"model {name!r} wants images [height, width, channels], these rows have shape "
            f"{list(shape)}: use --model mlp"
        )
    return from_nnx(_ZOO[name](shape, classes, width), name=name)
