"""timm's networks in safetensors: which of the built-in models one is, and its arrays as ours.

Names and layouts are those of ``fb.models.to_torch``. What names cannot tell is read from shapes:
the size of the first convolution, patches, depth and width of a transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fairbilevel import models
from fairbilevel.pretrained._checkpoint import Checkpoint, Pretrained, as_numbers, flat_shapes
from fairbilevel.problem import FairPruningProblem

Shapes = Mapping[str, tuple[int, ...]]

FAMILIES = ("resnet10", "resnet18", "resnet34", "resnet50", "mobilenetv2", "vit")
"""Built-in models that are networks of timm, under torch's padding."""
_BLOCKS: dict[tuple[tuple[int, ...], bool], str] = {
    ((1, 1, 1, 1), False): "resnet10",
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
}
_HEADS = {"vit": "head", "mobilenetv2": "classifier"}
_HEAD_SIZE = 64  # entries of each head in all of timm's plain vision transformers
_COUNTER = "num_batches_tracked"  # torch's count of batches beside running statistics


class TimmFile(Checkpoint):
    """A state dictionary of timm in one safetensors file."""

    @staticmethod
    def open(path: Path) -> TimmFile:
        """Read a file; one that ``fb.export`` has written is refused."""
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise ValueError(
                f"reading {path} needs safetensors: pip install 'fairbilevel[safetensors]'"
            ) from None
        try:
            with safe_open(path, "numpy") as file:
                told = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
        if "fairbilevel" in told:
            raise ValueError(
                f"{path} holds a network that fairbilevel has pruned and exported: give the folder "
                "of its run, where the dense one is"
            )
        return TimmFile(path, {name: as_numbers(path, name, a) for name, a in arrays.items()})

    @property
    def _shapes(self) -> Shapes:
        return {name: values.shape for name, values in self.arrays.items()}

    def model(self, name: str = "auto", width: int | None = None) -> tuple[str, int | None]:
        """See ``Checkpoint.model``."""
        shapes = self._shapes
        found = _family(shapes)
        if name == "auto":
            if found is None:
                raise ValueError(
                    f"{self.path} is of none of the networks of timm that are read "
                    f"({', '.join(FAMILIES)}): it holds {_some(shapes)}"
                )
            name = found
        family, _, rest = name.partition(":")
        if family not in FAMILIES:
            raise ValueError(
                f"{self.path} holds torch weights, which are read for {', '.join(FAMILIES)}, not "
                f"for {family}"
            )
        if found is not None and found != family:
            raise ValueError(
                f"{self.path} holds timm's {found}, not {family}: give --model {found}"
            )
        if found is None and family in ("vit", "mobilenetv2"):
            raise ValueError(f"{self.path} is not of timm's {family}: it holds {_some(shapes)}")
        asked = dict(part.partition("=")[::2] for part in rest.split(",") if part)
        if family == "vit":
            read, wide = self._transformer(asked)
        else:
            read, wide = self._convolutional(family)
        options = {**read, **asked}
        text = ",".join(f"{key}={value}" for key, value in sorted(options.items()))
        return f"{family}:{text}", wide if width is None else width

    def _convolutional(self, family: str) -> tuple[dict[str, str], int | None]:
        stem = "conv_stem.weight" if family == "mobilenetv2" else "conv1.weight"
        shape = self._shapes.get(stem, ())
        if len(shape) != 4:
            raise ValueError(
                f"{self.path} has no convolution {stem!r}, where timm's {family} begins: it holds "
                f"{_some(self._shapes)}"
            )
        if shape[-1] not in ((3,) if family == "mobilenetv2" else (3, 7)):
            raise ValueError(
                f"{self.path} begins with {stem!r} of shape {list(shape)}: {family} begins with a "
                f"convolution of 3x3{'' if family == 'mobilenetv2' else ' or 7x7'}"
            )
        # torch's layers are the same for images of every size.
        small = family != "mobilenetv2" and shape[-1] == 3
        return {"padding": "symmetric", "small_images": str(small).lower()}, shape[0]

    def _transformer(self, asked: Mapping[str, str]) -> tuple[dict[str, str], int | None]:
        shapes = self._shapes
        patch = shapes["patch_embed.proj.weight"]
        if len(patch) != 4 or patch[-1] != patch[-2]:
            raise ValueError(
                f"{self.path} has 'patch_embed.proj.weight' of shape {list(patch)}: vit takes "
                "square patches"
            )
        width, depth = patch[0], _count(shapes, "blocks.")
        if "heads" not in asked and width % _HEAD_SIZE:
            raise ValueError(
                f"{self.path} has tokens of {width} entries, and no shape tells into how many "
                "heads they are split: give --model vit:heads=N"
            )
        return {
            "patch": str(patch[-1]),
            "depth": str(depth),
            "heads": str(max(width // _HEAD_SIZE, 1)),
        }, width

    def network(self, problem: FairPruningProblem) -> Pretrained:
        """See ``Checkpoint.network``. Every array is used once; counters of batches are left."""
        if not problem.built_in:
            raise ValueError(
                f"{self.path} holds torch weights, which are read for built-in models, given by "
                f"name: {', '.join(FAMILIES)}"
            )
        name, width = self.model(problem.model.name, problem.width)
        row, own = problem.inputs.shape[1:], problem.model.name
        wide = problem.width or models.usual_width(own)
        if models.options_of(name, row) != models.options_of(own, row) or width != wide:
            raise ValueError(
                f"{self.path} is of the model {name!r} of width {width}, and the problem's is "
                f"{own!r} of width {wide}: build it with what fb.pretrained.model_of tells"
            )
        family = models.family_of(name)
        head = _HEADS.get(family, "fc")
        arrays, notes = dict(self.arrays), list[str]()
        theirs, made = _wanted(problem)
        if family == "vit":
            notes += self._fit_positions(problem, arrays, theirs["pos_embed"])
        elif family != "mobilenetv2" and theirs["conv1.weight"][-1] == 3:
            notes.append(
                f"{self.path} begins with a convolution of 3x3, which is taken for one of stride 1 "
                "without pooling behind it: no shape tells"
            )
        answers = self._other_head(arrays, theirs, head, len(problem.data.classes))
        self._check(family, arrays, theirs)
        ours = models.from_torch(own, arrays, made)
        parts: dict[str, dict[str, np.ndarray]] = {"param": {}, "state": {}}
        for key, values in ours.items():
            part, _, leaf = key.partition("/")
            parts[part][leaf] = values
        return self._filled(problem, parts["param"], parts["state"], answers, tuple(notes))

    def _other_head(
        self, arrays: dict[str, np.ndarray], theirs: Shapes, head: str, classes: int
    ) -> int | None:
        """How many classes a classifier has that is not the problem's, 0 if there is none; zeros
        take its place."""
        weight, bias = f"{head}.weight", f"{head}.bias"
        there = arrays.get(weight)
        if there is not None:
            features = theirs[weight][1]
            if there.shape == theirs[weight] or there.ndim != 2 or there.shape[1] != features:
                return None
        for name in (weight, bias):
            arrays[name] = np.zeros(theirs[name], np.float32)
        return 0 if there is None else there.shape[0]

    def _check(self, family: str, arrays: Mapping[str, np.ndarray], theirs: Shapes) -> None:
        """That arrays and the model's tensors are the same, one to one."""
        wanted = {name for name in theirs if not name.endswith(_COUNTER)}
        there = {name for name in arrays if not name.endswith(_COUNTER)}
        lacks, more = sorted(wanted - there), sorted(there - wanted)
        if lacks or more:
            said = [f"lacks {lacks[0]!r}"] if lacks else []
            said += [f"holds {more[0]!r}, which has no place in {family}"] if more else []
            raise ValueError(f"{self.path} {' and '.join(said)}: is it of another architecture?")
        for name in sorted(wanted):
            if arrays[name].shape != theirs[name]:
                raise ValueError(
                    f"{self.path} holds {name!r} of shape {list(arrays[name].shape)}, and "
                    f"{family} here has {list(theirs[name])}"
                )

    def _fit_positions(
        self, problem: FairPruningProblem, arrays: dict[str, np.ndarray], wanted: tuple[int, ...]
    ) -> list[str]:
        """Resample the embedding of positions to the patches of other images, as timm does."""
        there = arrays.get("pos_embed")
        if there is None or there.shape == wanted or there.ndim != 3:
            return []
        side = round(max(there.shape[1] - 1, 0) ** 0.5)
        if side < 1 or side**2 != there.shape[1] - 1 or there.shape[2] != wanted[2]:
            return []  # refused by its shape
        height, width, _ = problem.inputs.shape[1:]
        patch = problem.shapes.params["embedding"]["kernel"].shape[0]
        rows, columns = height // patch, width // patch
        grid = there[0, 1:].reshape(side, side, -1)
        new = jax.image.resize(jnp.asarray(grid), (rows, columns, grid.shape[-1]), "cubic")
        flat = np.asarray(new).reshape(1, rows * columns, -1)
        arrays["pos_embed"] = np.concatenate([there[:, :1], flat], 1)
        return [
            f"{self.path} is for images of {side * patch}x{side * patch} pixels and these have "
            f"{height}x{width}: its embedding of positions was resampled from {side}x{side} to "
            f"{rows}x{columns} patches"
        ]


def _wanted(problem: FairPruningProblem) -> tuple[Shapes, dict]:
    """Shapes of the tensors that the model of a problem has in torch, and what each is made of."""
    shapes = problem.shapes
    parts = {"param": shapes.params, "state": shapes.state}
    # Zeros without memory: only names, shapes and layouts are wanted.
    empty = {
        f"{part}/{name}": np.broadcast_to(np.float32(0), shape)
        for part, tree in parts.items()
        for name, shape in flat_shapes(tree).items()
    }
    theirs, made = models.to_torch(problem.model.name, empty)
    return {name: values.shape for name, values in theirs.items()}, made


def _family(shapes: Shapes) -> str | None:
    """The built-in model whose tensors have these names, by the most telling ones."""
    if "patch_embed.proj.weight" in shapes:
        return "vit"
    if "conv_stem.weight" in shapes and "blocks.0.0.conv_dw.weight" in shapes:
        return "mobilenetv2"
    stages = tuple(_count(shapes, f"layer{stage}.") for stage in (1, 2, 3, 4))
    return _BLOCKS.get((stages, "layer1.0.conv3.weight" in shapes))


def _count(shapes: Shapes, prefix: str) -> int:
    """How many different words follow a prefix."""
    return len({n[len(prefix) :].partition(".")[0] for n in shapes if n.startswith(prefix)})


def _some(shapes: Shapes) -> str:
    """The first names, for a sentence."""
    names = [f"{name!r}" for name in list(shapes)[:3]]
    return ", ".join(names) + (", ..." if len(shapes) > 3 else "") if names else "nothing"
