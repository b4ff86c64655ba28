"""Data: sources, groups, the five roles, and encoders.

`load` reads a named data set, a file or a folder; `from_arrays` takes arrays. Both give a
`Dataset`, whose inputs may stay where they are (`RowStore`, `StoredRows`); `convert` writes any
source as shards. `handle_small_classes` decides which classes stay and `handle_small_groups` which
groups count, `split_roles` and `fold_roles` give every row its role, and an `Encoder` fitted on the
rows of fit turns inputs into numbers. Every mistake of the user is a `DataError` of one sentence.
"""

from ._arrays import from_arrays
from ._columns import Normalize, parse_normalize, write_normalize
from ._convert import Converted, convert
from ._dataset import Dataset, Options, as_labels
from ._encoder import Encoder, standardize
from ._errors import DataError
from ._fingerprints import (
    RowFingerprints,
    coarse_fingerprints,
    coarse_scale,
    row_fingerprints,
)
from ._load import load, read_table
from ._roles import (
    FRACTIONS,
    ROLES,
    atoms,
    check_counted,
    check_roles,
    fold_roles,
    role_halves,
    split_roles,
)
from ._small import handle_small_classes, handle_small_groups
from ._stores import RowStore, StoredRows, ahead, readers, select, watch_passes

__all__ = [
    "FRACTIONS",
    "ROLES",
    "Converted",
    "DataError",
    "Dataset",
    "Encoder",
    "Normalize",
    "Options",
    "RowFingerprints",
    "RowStore",
    "StoredRows",
    "ahead",
    "as_labels",
    "atoms",
    "check_counted",
    "check_roles",
    "coarse_fingerprints",
    "coarse_scale",
    "convert",
    "fold_roles",
    "from_arrays",
    "handle_small_classes",
    "handle_small_groups",
    "load",
    "parse_normalize",
    "read_table",
    "readers",
    "role_halves",
    "row_fingerprints",
    "select",
    "split_roles",
    "standardize",
    "watch_passes",
    "write_normalize",
]
