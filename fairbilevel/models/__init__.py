"""Models as pure functions: built-in classifiers and adapters for Flax and bare functions."""

from fairbilevel.models._mobile import MobileNetV2
from fairbilevel.models._model import (
    Model,
    as_model,
    from_function,
    from_linen,
    from_nnx,
    named_arrays,
    shapes_of,
)
from fairbilevel.models._plain import CNN, MLP, VGG
from fairbilevel.models._precision import (
    check_precision,
    in_precision,
    refusal,
    rounded,
    rounds_inputs,
)
from fairbilevel.models._residual import CifarResNet, ResNet
from fairbilevel.models._torch import from_torch, to_torch
from fairbilevel.models._transformer import ViT
from fairbilevel.models._zoo import NAMES, build, family_of, options_of, usual_width

__all__ = [
    "CNN",
    "MLP",
    "NAMES",
    "VGG",
    "CifarResNet",
    "MobileNetV2",
    "Model",
    "ResNet",
    "ViT",
    "as_model",
    "build",
    "check_precision",
    "family_of",
    "from_function",
    "from_linen",
    "from_nnx",
    "from_torch",
    "in_precision",
    "named_arrays",
    "options_of",
    "refusal",
    "rounded",
    "rounds_inputs",
    "shapes_of",
    "to_torch",
    "usual_width",
]
