"""What leaves: the ``model/`` folder of a run, the compact network, and files that others serve."""

from fairbilevel.deploy._artifact import (
    ALLOWED_CHANGED,
    FORMATS,
    Artifact,
    Judge,
    check_precision,
    format_of,
    read_artifact,
    write_artifact,
)
from fairbilevel.deploy._compact import Compact, compact, forward
from fairbilevel.deploy._model import (
    ModelFiles,
    load_model,
    load_network,
    model_description,
    network_arrays,
    network_of,
    save_model,
    save_network,
)
from fairbilevel.deploy._profile import (
    Footprint,
    Profile,
    Speed,
    check_profile,
    layer_times,
    measure,
)

__all__ = [
    "ALLOWED_CHANGED",
    "FORMATS",
    "Artifact",
    "Compact",
    "Footprint",
    "Judge",
    "ModelFiles",
    "Profile",
    "Speed",
    "check_precision",
    "check_profile",
    "compact",
    "format_of",
    "forward",
    "layer_times",
    "load_model",
    "load_network",
    "measure",
    "model_description",
    "network_arrays",
    "network_of",
    "read_artifact",
    "save_model",
    "save_network",
    "write_artifact",
]
