"""Networks trained elsewhere: timm's safetensors and Orbax's folders, read into a problem's model.

timm is Wightman's PyTorch Image Models; what is read needs neither it nor torch.
"""

from fairbilevel.pretrained._checkpoint import Checkpoint, Pretrained, refer
from fairbilevel.pretrained._read import model_of, read

__all__ = [
    "Checkpoint",
    "Pretrained",
    "model_of",
    "read",
    "refer",
]
