"""The sources, in the order in which they are asked whether a location is theirs."""

from __future__ import annotations

from ._arrays import Arrays
from ._digits import Digits
from ._encoded_folder import EncodedFolder
from ._faces import CelebA, UTKFace
from ._folder import ImageFolder, ParquetImages
from ._row_folder import RowFolder
from ._source import Source
from ._table import Table
from ._tfds import TensorFlowDatasets

SOURCES: tuple[Source, ...] = (
    Digits(),
    TensorFlowDatasets(),
    ParquetImages(),
    Table(),
    Arrays(),
    EncodedFolder(),
    RowFolder(),
    CelebA(),
    UTKFace(),
    ImageFolder(),
)
