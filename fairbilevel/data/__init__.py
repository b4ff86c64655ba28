"""Data: sources, groups, the five roles, and encoders.

`load` reads a named data set, a file or a folder; `from_arrays` takes arrays. Both give a
`Dataset`. `handle_small_groups` decides which groups count, `split_roles` and `fold_roles` give
every row its role, and an `Encoder` fitted on the rows of fit turns inputs into numbers. Every
mistake of the user is a `DataError` of one sentence.
"""

from ._arrays import from_arrays
from ._dataset import Dataset, Options
from ._encoder import Encoder, Normalize, parse_normalize, standardize, write_normalize
from ._errors import DataError
from ._fingerprints import RowFingerprints, row_fingerprints
from ._groups import handle_small_groups
from ._load import load
from ._roles import FRACTIONS, ROLES, atoms, check_roles, fold_roles, role_halves, split_roles

__all__ = [
    "FRACTIONS",
    "ROLES",
    "DataError",
    "Dataset",
    "Encoder",
    "Normalize",
    "Options",
    "RowFingerprints",
    "atoms",
    "check_roles",
    "fold_roles",
    "from_arrays",
    "handle_small_groups",
    "load",
    "parse_normalize",
    "role_halves",
    "row_fingerprints",
    "split_roles",
    "standardize",
    "write_normalize",
]
