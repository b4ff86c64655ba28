"""Networks trained elsewhere: timm's safetensors and Orbax's folders, read into a problem's model.

timm is Wightman's PyTorch Image Models; what is read needs neither it nor torch.
"""

from fairbilevel.pretrained._checkpoint import Checkpoint, Pretrained, refer
from fairbilevel.pretrained._orbax import OrbaxFolder
from fairbilevel.pretrained._read import model_of, read
from fairbilevel.pretrained._timm import TimmFile

__all__ = [
    "Checkpoint",
    "OrbaxFolder",
    "Pretrained",
    "TimmFile",
    "model_of",
    "read",
    "refer",
]
