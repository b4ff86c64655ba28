"""MobileNetV2 (Sandler et al. 2018) in ``flax.nnx``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from fairbilevel.models._blocks import Padding, around, batch_norm, run_block

# Expansion, output channels, blocks, stride of the first block (the paper's table 2).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Depthwise(nnx.Module):
    """A 3x3 convolution of each channel by itself, as many as its kernel has."""

    def __init__(self, channels: int, stride: int, padding: Padding, *, rngs: nnx.Rngs):
        start = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(start(rngs.params(), (3, 3, 1, channels)))
        self.stride, self.padding = stride, around(3, padding)

    def __call__(self, x: Array) -> Array:
        """Channels as they came, the image smaller by the stride."""
        return lax.conv_general_dilated(
            x,
            self.kernel[...],
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )


class InvertedResidual(nnx.Module):
    """Expand, filter each channel by itself, project back, add (the paper's figure 3b)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        stride: int,
        padding: Padding = "same",
        *,
        rngs: nnx.Rngs,
    ):
        conv = partial(nnx.Conv, kernel_size=(1, 1), use_bias=False, rngs=rngs)
        inside = expansion * inputs
        self.expands, self.adds = expansion != 1, stride == 1 and inputs == outputs
        if self.expands:
            self.expand = conv(inputs, inside)
            self.expand_norm = batch_norm(inside, rngs=rngs)
        self.depthwise = Depthwise(inside, stride, padding, rngs=rngs)
        self.depthwise_norm = batch_norm(inside, rngs=rngs)
        self.project = conv(inside, outputs)
        self.project_norm = batch_norm(outputs, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """What the next block takes: no nonlinearity behind the projection."""
        y = nnx.relu6(self.expand_norm(self.expand(x))) if self.expands else x
        y = nnx.relu6(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        return x + y if self.adds else y


class MobileNetV2(nnx.Module):
    """Inverted residuals with depthwise convolutions and ReLU6 (Sandler et al. 2018).

    Args:
        channels: input channels.
        classes: outputs.
        width: channels of the first convolution, 32 in the paper; all other layers, the last one of
            1280 channels too, are scaled by ``width / 32`` and rounded, to two channels at least.
        small_images: the first convolution and the second stage keep the image's size, so that 32
            pixels leave 4 before the mean, as is usual up to 64 pixels.
        stages: expansion, output channels, blocks and stride of the first block, a stage each.
        remat: keep one activation a block for the backward pass and compute the rest again.
        padding: around the image before strided convolutions, ``"same"`` or torch's
            ``"symmetric"``.
        rngs: where the initial weights come from.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int = 32,
        small_images: bool = True,
        stages: Sequence[tuple[int, int, int, int]] = STAGES,
        remat: bool = False,
        padding: Padding = "same",
        *,
        rngs: nnx.Rngs,
    ):
        def scaled(count: int) -> int:
            return max(2, round(count * width / 32))

        self.remat = remat
        inputs = scaled(32)
        stride = 1 if small_images else 2
        self.stem = nnx.Conv(
            channels,
            inputs,
            (3, 3),
            stride,
            padding=around(3, padding),
            use_bias=False,
            rngs=rngs,
        )
        self.stem_norm = batch_norm(inputs, rngs=rngs)
        blocks = []
        for stage, (expansion, count, repeats, first) in enumerate(stages):
            outputs = scaled(count)
            for block in range(repeats):
                halves = block == 0 and first == 2 and not (small_images and stage == 1)
                stride = 2 if halves else 1
                blocks.append(
                    InvertedResidual(inputs, outputs, expansion, stride, padding, rngs=rngs)
                )
                inputs = outputs
        self.blocks = nnx.List(blocks)
        last = scaled(1280)
        self.last = nnx.Conv(inputs, last, (1, 1), use_bias=False, rngs=rngs)
        self.last_norm = batch_norm(last, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.classifier = nnx.Linear(last, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "rows height width channels"]) -> Float[Array, "rows c"]:
        """Logits."""
        x = nnx.relu6(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = run_block(block, x, self.remat)
        x = nnx.relu6(self.last_norm(self.last(x)))
        return self.classifier(self.dropout(x.mean((1, 2))))
