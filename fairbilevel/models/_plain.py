"""Models without shortcuts, in ``flax.nnx``: MLP, a small CNN, VGG-19 with batch normalization."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from fairbilevel.models._blocks import batch_norm, run_block


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
        self.norms = nnx.List([batch_norm(b, rngs=rngs) for b in sizes[1:]])
        self.classifier = nnx.Linear(sizes[-1], classes, rngs=rngs)

    def __call__(self, x: Float[Array, "rows height width channels"]) -> Float[Array, "rows c"]:
        """Logits."""
        for conv, norm in zip(self.convolutions, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.classifier(x.mean((1, 2)))


_VGG_STAGES = (2, 2, 4, 4, 4)  # convolutions between two halvings of the image


def _convolved(layers: list[tuple[nnx.Conv, nnx.BatchNorm]], x: Array) -> Array:
    for conv, norm in layers:
        x = nnx.relu(norm(conv(x)))
    return x


class VGG(nnx.Module):
    """VGG-19 with batch normalization (Simonyan and Zisserman 2015, configuration E).

    Up to 64 pixels the classifier is one dense layer behind a mean over what is left of the image,
    as usual for CIFAR (20.04 M parameters at 32 pixels and 10 classes); above, the two hidden
    layers of the original with dropout of one half (143.68 M at 224 pixels and 1000 classes).
    Convolutions keep their biases, as in the published counts.

    Args:
        shape: height, width and channels of the images.
        classes: outputs.
        width: channels of the first two convolutions, 64 in the paper.
        remat: keep one activation a stage for the backward pass and compute the rest again.
        rngs: where the initial weights come from.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        width: int = 64,
        remat: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        height, breadth, inputs = shape
        convolutions, norms, pools = [], [], []
        for stage, count in enumerate(_VGG_STAGES):
            for _ in range(count):
                outputs = width * min(2**stage, 8)
                convolutions.append(nnx.Conv(inputs, outputs, (3, 3), rngs=rngs))
                norms.append(batch_norm(outputs, rngs=rngs))
                pools.append(False)
                inputs = outputs
            # An image of one pixel cannot be halved.
            pools[-1] = min(height, breadth) > 1
            if pools[-1]:
                height, breadth = height // 2, breadth // 2
        self.convolutions, self.norms = nnx.List(convolutions), nnx.List(norms)
        self.pools, self.remat = tuple(pools), remat
        self.averaged = max(shape[:2]) <= 64
        sizes = (inputs,) if self.averaged else (height * breadth * inputs, 64 * width, 64 * width)
        self.hidden = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.classifier = nnx.Linear(sizes[-1], classes, rngs=rngs)

    def __call__(self, x: Float[Array, "rows height width channels"]) -> Float[Array, "rows c"]:
        """Logits."""
        layers = list(zip(self.convolutions, self.norms, strict=True))
        end = 0
        for count in _VGG_STAGES:
            begin, end = end, end + count
            x = run_block(layers[begin:end], x, self.remat, _convolved)
            if self.pools[end - 1]:
                x = nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.mean((1, 2)) if self.averaged else x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = self.dropout(nnx.relu(layer(x)))
        return self.classifier(x)
