"""Residual networks (He et al. 2016) in ``flax.nnx``: ResNet-10 to 50, and CifarResNet-56."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fairbilevel.models._blocks import Padding, around, batch_norm, run_block


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2)."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, padding: Padding = "same", *, rngs: nnx.Rngs
    ):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv1 = conv(inputs, width, (3, 3), stride, padding=around(3, padding))
        self.norm1 = batch_norm(width, rngs=rngs)
        self.conv2 = conv(width, width, (3, 3))
        self.norm2 = batch_norm(width, rngs=rngs)
        self.project = stride != 1 or inputs != width
        if self.project:
            self.shortcut = conv(inputs, width, (1, 1), stride)
            self.shortcut_norm = batch_norm(width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """What the next block takes."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (self.shortcut_norm(self.shortcut(x)) if self.project else x))


class Bottleneck(nnx.Module):
    """A 3x3 convolution between two 1x1 ones, and a shortcut (He et al. 2016, figure 5).

    The stride lies in the 3x3 convolution, as in most implementations since ("v1.5").
    """

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, padding: Padding = "same", *, rngs: nnx.Rngs
    ):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        outputs = self.expansion * width
        self.conv1 = conv(inputs, width, (1, 1))
        self.norm1 = batch_norm(width, rngs=rngs)
        self.conv2 = conv(width, width, (3, 3), stride, padding=around(3, padding))
        self.norm2 = batch_norm(width, rngs=rngs)
        self.conv3 = conv(width, outputs, (1, 1))
        self.norm3 = batch_norm(outputs, rngs=rngs)
        self.project = stride != 1 or inputs != outputs
        if self.project:
            self.shortcut = conv(inputs, outputs, (1, 1), stride)
            self.shortcut_norm = batch_norm(outputs, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """What the next block takes."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return nnx.relu(y + (self.shortcut_norm(self.shortcut(x)) if self.project else x))


class ResNet(nnx.Module):
    """A residual network (He et al. 2016).

    Args:
        blocks: blocks of each of the four stages: ``(1, 1, 1, 1)`` is ResNet-10, ``(2, 2, 2, 2)``
            ResNet-18, ``(3, 4, 6, 3)`` ResNet-34 or, with bottlenecks, ResNet-50.
        channels: input channels.
        classes: outputs.
        width: channels of the first stage, doubled by each next one; 64 in the paper. Bottlenecks
            hand on four times as many.
        small_images: a 3x3 first convolution without pooling instead of the 7x7 one with it, as is
            usual up to 64 pixels.
        bottleneck: blocks of three convolutions instead of two.
        remat: keep one activation a block for the backward pass and compute the rest again.
        padding: around the image before strided convolutions and the pooling, ``"same"`` or
            torch's ``"symmetric"``.
        rngs: where the initial weights come from.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        channels: int,
        classes: int,
        width: int = 64,
        small_images: bool = True,
        bottleneck: bool = False,
        remat: bool = False,
        padding: Padding = "same",
        *,
        rngs: nnx.Rngs,
    ):
        size, stride = (3, 1) if small_images else (7, 2)
        self.stem = nnx.Conv(
            channels,
            width,
            (size, size),
            stride,
            padding=around(size, padding),
            use_bias=False,
            rngs=rngs,
        )
        self.stem_norm = batch_norm(width, rngs=rngs)
        self.pool, self.padding, self.remat = not small_images, padding, remat
        block_type = Bottleneck if bottleneck else BasicBlock
        stages, inputs = [], width
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(block_type(inputs, width * 2**stage, stride, padding, rngs=rngs))
                inputs = width * 2**stage * block_type.expansion
        self.blocks = nnx.List(stages)
        self.classifier = nnx.Linear(inputs, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "rows height width channels"]) -> Float[Array, "rows c"]:
        """Logits."""
        x = nnx.relu(self.stem_norm(self.stem(x)))
        if self.pool:
            same = self.padding == "same"
            # Zeros stand for torch's -inf, behind a ReLU; converters to ONNX know them only so.
            x = x if same else jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            window = "SAME" if same else "VALID"
            x = nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=window)
        for block in self.blocks:
            x = run_block(block, x, self.remat)
        return self.classifier(x.mean((1, 2)))


class PaddedBlock(nnx.Module):
    """A basic block whose shortcut has no parameters (He et al. 2016, section 3.3, option A).

    Where the block halves the image and doubles the channels, the shortcut takes every other pixel
    and is zero in the new channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv1 = conv(inputs, outputs, (3, 3), stride)
        self.norm1 = batch_norm(outputs, rngs=rngs)
        self.conv2 = conv(outputs, outputs, (3, 3))
        self.norm2 = batch_norm(outputs, rngs=rngs)
        self.stride, self.added = stride, outputs - inputs

    def __call__(self, x: Array) -> Array:
        """What the next block takes."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride != 1:
            x = x[:, :: self.stride, :: self.stride]
        if self.added:
            before = self.added // 2
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, self.added - before)))
        return nnx.relu(y + x)


class CifarResNet(nnx.Module):
    """The residual network of ``6 n + 2`` layers for small images (He et al. 2016, section 4.2).

    Three stages of ``n`` basic blocks with parameter-free shortcuts (option A), as in the paper;
    nine blocks a stage are CifarResNet-56, 853,018 parameters with three input channels and ten
    classes. Channels of a stage are also channels of the next one, at another place, so at
    granularity ``filter`` only the first convolutions of blocks can be pruned; the ResNets with
    projections prune their stages too.

    Args:
        blocks: blocks of each stage.
        channels: input channels.
        classes: outputs.
        width: channels of the first stage, doubled by each next one; 16 in the paper.
        remat: keep one activation a block for the backward pass and compute the rest again.
        rngs: where the initial weights come from.
    """

    def __init__(
        self,
        blocks: int,
        channels: int,
        classes: int,
        width: int = 16,
        remat: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.remat = remat
        self.stem = nnx.Conv(channels, width, (3, 3), use_bias=False, rngs=rngs)
        self.stem_norm = batch_norm(width, rngs=rngs)
        stages, inputs = [], width
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(PaddedBlock(inputs, width * 2**stage, stride, rngs=rngs))
                inputs = width * 2**stage
        self.blocks = nnx.List(stages)
        self.classifier = nnx.Linear(inputs, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "rows height width channels"]) -> Float[Array, "rows c"]:
        """Logits."""
        x = nnx.relu(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = run_block(block, x, self.remat)
        return self.classifier(x.mean((1, 2)))
