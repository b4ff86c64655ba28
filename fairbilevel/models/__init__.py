"""Models as pure functions: built-in classifiers and adapters for Flax and bare functions."""

from fairbilevel.models._mobile import MobileNetV2
from fairbilevel.models._model import Model, from_function, from_linen, from_nnx, split_nnx
from fairbilevel.models._plain import CNN, MLP, VGG
from fairbilevel.models._precision import PRECISIONS, check_precision, in_precision
from fairbilevel.models._residual import CifarResNet, ResNet
from fairbilevel.models._transformer import ViT
from fairbilevel.models._zoo import NAMES, build

__all__ = [
    "CNN",
    "MLP",
    "NAMES",
    "PRECISIONS",
    "VGG",
    "CifarResNet",
    "MobileNetV2",
    "Model",
    "ResNet",
    "ViT",
    "build",
    "check_precision",
    "from_function",
    "from_linen",
    "from_nnx",
    "in_precision",
    "split_nnx",
]
