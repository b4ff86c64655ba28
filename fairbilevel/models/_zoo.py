"""The built-in classifiers by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from flax import nnx

from fairbilevel import _options
from fairbilevel.models._blocks import Padding
from fairbilevel.models._mobile import MobileNetV2
from fairbilevel.models._model import Model, from_nnx
from fairbilevel.models._plain import CNN, MLP, VGG
from fairbilevel.models._residual import CifarResNet, ResNet
from fairbilevel.models._transformer import ViT

_SMALL = 64  # pixels up to which networks made for 224 keep the image's size at first
_MOST_BLOCKS = 100


@dataclass(frozen=True)
class _None:
    """Of families without options."""

    def of(self, shape: tuple[int, ...]) -> _None:
        return self


@dataclass(frozen=True)
class _Convolutional:
    """Of families with strided convolutions.

    Attributes:
        small_images: whether the image's size is kept at first; up to 64 pixels by default.
        padding: around the image before strided convolutions, same or (torch's) symmetric.
    """

    small_images: bool | None = None
    padding: Padding = "same"

    def of(self, shape: tuple[int, ...]) -> _Convolutional:
        small = _small(shape) if self.small_images is None else self.small_images
        return dataclasses.replace(self, small_images=small)


@dataclass(frozen=True)
class _Transformer:
    """Of vision transformers.

    Attributes:
        patch: pixels a patch is high and wide; 16, or an eighth of images up to 64, by default.
        depth: blocks.
        heads: of each block.
    """

    patch: int | None = None
    depth: int = 12
    heads: int = 3

    def __post_init__(self) -> None:
        if self.patch is not None:
            _options.at_least(self, 1, "patch")
        _options.at_least(self, 1, "depth", "heads")
        if self.depth > _MOST_BLOCKS:
            raise ValueError(f"depth must be at most {_MOST_BLOCKS}, got {self.depth}")

    def of(self, shape: tuple[int, ...]) -> _Transformer:
        usual = max(min(shape[:2]) // 8, 1) if _small(shape) else 16
        return dataclasses.replace(self, patch=usual if self.patch is None else self.patch)


def _padding(text: str) -> str:
    _options.one_of("padding", text, get_args(Padding))
    return text


def _small(shape: tuple[int, ...]) -> bool:
    return max(shape[:2]) <= _SMALL


Make = Callable[[tuple[int, ...], int, int, bool, Any, nnx.Rngs], nnx.Module]


@dataclass(frozen=True)
class _Family:
    """How models are made of shape, classes, width, remat, options and random streams; the width
    by default; the class of the options, whose ``of`` leaves none to the shape of a row."""

    make: Make
    width: int
    options: type[Any] = _None


def _resnet(*blocks: int, bottleneck: bool = False) -> _Family:
    def make(
        s: tuple[int, ...], c: int, width: int, remat: bool, o: _Convolutional, r: nnx.Rngs
    ) -> ResNet:
        small = bool(o.small_images)
        return ResNet(blocks, s[-1], c, width, small, bottleneck, remat, o.padding, rngs=r)

    return _Family(make, 64, _Convolutional)


def _mobile(
    s: tuple[int, ...], c: int, width: int, remat: bool, o: _Convolutional, r: nnx.Rngs
) -> MobileNetV2:
    small = bool(o.small_images)
    return MobileNetV2(s[-1], c, width, small, remat=remat, padding=o.padding, rngs=r)


def _vit(s: tuple[int, ...], c: int, width: int, remat: bool, o: _Transformer, r: nnx.Rngs) -> ViT:
    patch = o.patch or 1
    if patch > min(s[:2]):
        raise ValueError(f"images of {s[0]}x{s[1]} pixels hold no patch of {patch}x{patch}")
    return ViT((s[0], s[1], s[2]), c, patch, width, o.depth, o.heads, remat, rngs=r)


_ZOO: dict[str, _Family] = {
    "mlp": _Family(lambda s, c, w, _, o, r: MLP(math.prod(s), c, (w, max(w // 2, 1)), rngs=r), 256),
    "cnn": _Family(lambda s, c, w, _, o, r: CNN(s[-1], c, w, rngs=r), 16),
    "resnet10": _resnet(1, 1, 1, 1),
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    "cifar-resnet56": _Family(lambda s, c, w, m, o, r: CifarResNet(9, s[-1], c, w, m, rngs=r), 16),
    "mobilenetv2": _Family(_mobile, 32, _Convolutional),
    "vgg19": _Family(lambda s, c, w, m, o, r: VGG((s[0], s[1], s[2]), c, w, m, rngs=r), 64),
    "vit": _Family(_vit, 192, _Transformer),
}

NAMES = tuple(_ZOO)


def family_of(name: str) -> str:
    """The part of a built-in model's name before its options: of ``"vit:patch=8"``, ``"vit"``."""
    return name.partition(":")[0]


def usual_width(name: str) -> int:
    """The width of a built-in model where none is given."""
    return _ZOO[family_of(name)].width


def options_of(name: str, input_shape: Sequence[int]) -> Any:
    """The options of a built-in model on rows of a shape, defaults filled in: equal where two names
    mean the same model.

    Raises:
        ValueError: unknown name or option (with the nearest one), or a value outside its range.
    """
    family, _, rest = name.partition(":")
    _options.one_of("model", family, NAMES)
    kind, what = _ZOO[family].options, f"model {family!r}"
    try:
        given = kind(**_options.parse(what, kind, rest, readers={"padding": _padding}))
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith("model ") else f"model {name!r}: {said}") from None
    return given.of(tuple(input_shape))


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

    Options of a family stand after a colon: ``"resnet18:padding=symmetric,small_images=false"``.
    Residual networks and MobileNetV2 take ``padding``, ``same`` or torch's ``symmetric``, and
    ``small_images``, whether the image's size is kept at first (the default up to 64 pixels); ViT
    takes ``patch``, ``depth`` (12) and ``heads`` (3).

    Args:
        name: one of ``fb.models.NAMES``, options after a colon.
        input_shape: shape of one row: ``(height, width, channels)`` or ``(features,)``.
        classes: number of logits.
        width: neurons of the first hidden layer (``mlp`` 256), channels of the first stage (``cnn``
            and ``cifar-resnet56`` 16, ``resnet*`` and ``vgg19`` 64, ``mobilenetv2`` 32) or entries
            of a token (``vit`` 192); the default where ``None``.
        remat: keep one activation a block for the backward pass and compute the rest again (blocks
            of residual networks, MobileNetV2 and ViT, convolutions between two halvings of VGG;
            ``mlp`` and ``cnn`` are small enough to keep all).

    Raises:
        ValueError: unknown name or option (with the nearest one), a value outside its range, an
            image model on rows that are not images, or a width below 1.
    """
    family = family_of(name)
    _options.one_of("model", family, NAMES)
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    shape = tuple(int(n) for n in input_shape)
    if family != "mlp" and len(shape) != 3:
        raise ValueError(
            f"model {name!r} wants images [height, width, channels], these rows have shape "
            f"{list(shape)}: use --model mlp"
        )
    entry, options = _ZOO[family], options_of(name, shape)
    chosen = entry.width if width is None else width
    return from_nnx(
        lambda rngs: entry.make(shape, classes, chosen, remat, options, rngs), name=name
    )
