"""The built-in classifiers by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flax import nnx

from fairbilevel import _options
from fairbilevel.models._mobile import MobileNetV2
from fairbilevel.models._model import Model, from_nnx
from fairbilevel.models._plain import CNN, MLP, VGG
from fairbilevel.models._residual import CifarResNet, ResNet
from fairbilevel.models._transformer import ViT

_SMALL = 64  # pixels up to which networks made for 224 keep the image's size at first


def _small(shape: tuple[int, ...]) -> bool:
    return max(shape[:2]) <= _SMALL


Make = Callable[[tuple[int, ...], int, int, bool, nnx.Rngs], nnx.Module]


def _resnet(*blocks: int, bottleneck: bool = False) -> tuple[Make, int]:
    def make(s: tuple[int, ...], classes: int, width: int, remat: bool, r: nnx.Rngs) -> ResNet:
        return ResNet(blocks, s[-1], classes, width, _small(s), bottleneck, remat, rngs=r)

    return make, 64


def _vit(s: tuple[int, ...], classes: int, width: int, remat: bool, r: nnx.Rngs) -> ViT:
    patch = max(min(s[:2]) // 8, 1) if _small(s) else 16
    return ViT((s[0], s[1], s[2]), classes, patch, width, remat=remat, rngs=r)


# How each is made of shape, classes, width, remat and random streams, and its width by default.
_ZOO: dict[str, tuple[Make, int]] = {
    "mlp": (lambda s, c, w, _, r: MLP(math.prod(s), c, (w, max(w // 2, 1)), rngs=r), 256),
    "cnn": (lambda s, c, w, _, r: CNN(s[-1], c, w, rngs=r), 16),
    "resnet10": _resnet(1, 1, 1, 1),
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    "cifar-resnet56": (lambda s, c, w, m, r: CifarResNet(9, s[-1], c, w, m, rngs=r), 16),
    "mobilenetv2": (lambda s, c, w, m, r: MobileNetV2(s[-1], c, w, _small(s), remat=m, rngs=r), 32),
    "vgg19": (lambda s, c, w, m, r: VGG((s[0], s[1], s[2]), c, w, m, rngs=r), 64),
    "vit": (_vit, 192),
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
    _options.one_of("model", name, NAMES)
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    shape = tuple(int(n) for n in input_shape)
    if name != "mlp" and len(shape) != 3:
        raise ValueError(
            f"model {name!r} wants images [height, width, channels], these rows have shape "
            f"{list(shape)}: use --model mlp"
        )
    make, usual = _ZOO[name]
    chosen = usual if width is None else width
    return from_nnx(lambda rngs: make(shape, classes, chosen, remat, rngs), name=name)
