"""The built-in classifiers by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flax import nnx

from fairbilevel.models._mobile import MobileNetV2
from fairbilevel.models._model import Model, from_nnx
from fairbilevel.models._plain import CNN, MLP, VGG
from fairbilevel.models._residual import CifarResNet, ResNet
from fairbilevel.models._transformer import ViT

_SMALL = 64  # pixels up to which networks made for 224 keep the image's size at first


def _small(shape: tuple[int, ...]) -> bool:
    return max(shape[:2]) <= _SMALL


@dataclass(frozen=True)
class _Entry:
    """A model: ``make(shape, classes, width, remat, rngs)`` and the width it has by default."""

    make: Callable[[tuple[int, ...], int, int, bool, nnx.Rngs], nnx.Module]
    width: int


def _mlp(
    shape: tuple[int, ...], classes: int, width: int, remat: bool, rngs: nnx.Rngs
) -> nnx.Module:
    return MLP(math.prod(shape), classes, (width, max(width // 2, 1)), rngs=rngs)


def _cnn(
    shape: tuple[int, ...], classes: int, width: int, remat: bool, rngs: nnx.Rngs
) -> nnx.Module:
    return CNN(shape[-1], classes, width, rngs=rngs)


def _resnet(*blocks: int, bottleneck: bool = False) -> _Entry:
    def make(
        shape: tuple[int, ...], classes: int, width: int, remat: bool, rngs: nnx.Rngs
    ) -> nnx.Module:
        small = _small(shape)
        return ResNet(blocks, shape[-1], classes, width, small, bottleneck, remat, rngs=rngs)

    return _Entry(make, 64)


def _cifar(
    shape: tuple[int, ...], classes: int, width: int, remat: bool, rngs: nnx.Rngs
) -> nnx.Module:
    return CifarResNet(9, shape[-1], classes, width, remat, rngs=rngs)


def _mobile(
    shape: tuple[int, ...], classes: int, width: int, remat: bool, rngs: nnx.Rngs
) -> nnx.Module:
    return MobileNetV2(shape[-1], classes, width, _small(shape), remat=remat, rngs=rngs)


def _vgg(
    shape: tuple[int, ...], classes: int, width: int, remat: bool, rngs: nnx.Rngs
) -> nnx.Module:
    return VGG((shape[0], shape[1], shape[2]), classes, width, remat, rngs=rngs)


def _vit(
    shape: tuple[int, ...], classes: int, width: int, remat: bool, rngs: nnx.Rngs
) -> nnx.Module:
    patch = max(min(shape[:2]) // 8, 1) if _small(shape) else 16
    size = (shape[0], shape[1], shape[2])
    return ViT(size, classes, patch, width, remat=remat, rngs=rngs)


_ZOO: dict[str, _Entry] = {
    "mlp": _Entry(_mlp, 256),
    "cnn": _Entry(_cnn, 16),
    "resnet10": _resnet(1, 1, 1, 1),
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    "cifar-resnet56": _Entry(_cifar, 16),
    "mobilenetv2": _Entry(_mobile, 32),
    "vgg19": _Entry(_vgg, 64),
    "vit": _Entry(_vit, 192),
}

NAMES = tuple(_ZOO)


def build(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    *,
    width: int | None = None,
    remat: bool = False,
) -> Model:
    """A built-in model by name. No array is made before ``init`` is called.

    ===================  ==================================================================
    ``mlp``              two hidden layers, the second half as wide
    ``cnn``              three convolutions
    ``resnet10/18/34``   basic blocks, projections where a stage begins
    ``resnet50``         bottlenecks, the stride in the 3x3 convolution
    ``cifar-resnet56``   three stages of nine basic blocks, shortcuts without parameters
    ``mobilenetv2``      inverted residuals with depthwise convolutions
    ``vgg19``            with batch normalization
    ``vit``              DeiT-Ti: patches of 16 pixels, or an eighth of images up to 64
    ===================  ==================================================================

    Args:
        name: one of ``fb.models.NAMES``.
        input_shape: shape of one row: ``(height, width, channels)`` or ``(features,)``.
        classes: number of logits.
        width: neurons of the first hidden layer (``mlp`` 256), channels of the first stage (``cnn``
            and ``cifar-resnet56`` 16, ``resnet*`` and ``vgg19`` 64, ``mobilenetv2`` 32) or entries
            of a token (``vit`` 192); the default where ``None``.
        remat: keep one activation a block for the backward pass and compute the rest again (blocks
            of residual networks, MobileNetV2 and ViT, convolutions between two halvings of VGG;
            ``mlp`` and ``cnn`` are small enough to keep all).

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
    entry = _ZOO[name]
    chosen = entry.width if width is None else width
    return from_nnx(lambda rngs: entry.make(shape, classes, chosen, remat, rngs), name=name)
