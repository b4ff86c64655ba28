"""The sources, in the order in which they are asked whether a location is theirs."""

from __future__ import annotations

from ._arrays import Arrays
from ._celeba import CelebA
from ._digits import Digits
from ._encoded_folder import EncodedFolder
from ._folder import ImageFolder
from ._parquet_images import ParquetImages
from ._row_folder import RowFolder
from ._source import Source
from ._table import Table
from ._tfds import TensorFlowDatasets
from ._utkface import UTKFace

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
