"""Which kind of checkpoint a path holds."""

from __future__ import annotations

from pathlib import Path

from fairbilevel.pretrained._checkpoint import Checkpoint
from fairbilevel.pretrained._orbax import MARKS, OrbaxFolder, is_orbax
from fairbilevel.pretrained._timm import TimmFile
from fairbilevel.records import is_run_folder

_PROGRAMS = (".stablehlo", ".mlir", ".onnx", ".tflite")
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def read(path: str | Path) -> Checkpoint:
    """Open a network trained elsewhere.

    Args:
        path: a safetensors file of timm, or a folder written by Orbax.

    Raises:
        ValueError: missing, damaged, of another kind, or what reads it is not installed.
    """
    place = Path(path)
    if not place.exists():
        raise ValueError(f"{place} does not exist")
    if is_run_folder(place):
        raise ValueError(f"{place} is a run: its dense model is fb.load_run(path).dense")
    if place.is_dir():
        if is_orbax(place):
            return OrbaxFolder.open(place)
        raise ValueError(f"{place} is no checkpoint of Orbax: it has no {' and no '.join(MARKS)}")
    kind = place.suffix.lower()
    with place.open("rb") as opened:
        start = opened.read(16)
    if kind in _PROGRAMS or start.startswith(b"ML\xefR"):
        raise ValueError(
            f"{place} holds a program (StableHLO and the like): it has no weights to prune, give "
            "them as safetensors or as a folder of Orbax"
        )
    header = start[8:9] == b"{"  # behind its length
    if kind in _PICKLES or (start.startswith(b"\x80") and not header):
        raise ValueError(
            f"{place} is pickled, and nothing pickled is read: save the state dictionary with "
            "safetensors.torch.save_file"
        )
    if kind != ".safetensors" and not header:
        raise ValueError(f"{place} is neither safetensors nor a folder of Orbax")
    return TimmFile.open(place)


def model_of(
    path: str | Path, name: str = "auto", width: int | None = None
) -> tuple[str, int | None]:
    """Name and width of the built-in model that a checkpoint fits, for ``fb.FairPruningProblem``.

    ::

        name, width = fb.pretrained.model_of("resnet18.safetensors")
        problem = fb.FairPruningProblem(name, x, y, group, width=width, normalize="imagenet")
        fb.solve(problem, sparsity=0.9, dense="resnet18.safetensors")

    Args:
        path: as for ``read``.
        name: the model asked for, with options if any; by default what tensors' names tell.
        width: likewise.

    Raises:
        ValueError: as ``read``, or a checkpoint of another architecture.
    """
    return read(path).model(name, width)
