"""Models as pure functions: built-in classifiers and adapters for Flax and bare functions."""

from fairbilevel.models._model import Model, from_function, from_linen, from_nnx
from fairbilevel.models._zoo import CNN, MLP, NAMES, ResNet, build

__all__ = [
    "CNN",
    "MLP",
    "NAMES",
    "Model",
    "ResNet",
    "build",
    "from_function",
    "from_linen",
    "from_nnx",
]
