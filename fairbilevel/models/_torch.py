"""Names and layouts that torch users read: timm's for the families that it has.

A convolution's kernel is ``[out, in, height, width]`` there, ``[height, width, in, out]`` here, a
dense one ``[out, in]`` and ``[in, out]``; normalization calls its numbers weight, bias,
running_mean and running_var. Other models keep their own names with these layouts and endings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

# Our module -> timm's, the first pattern that fits the whole name of a module.
_RESNET = (
    (r"stem", "conv1"),
    (r"stem_norm", "bn1"),
    (r"blocks/(\d+)/conv(\d)", "{block}.conv{1}"),
    (r"blocks/(\d+)/norm(\d)", "{block}.bn{1}"),
    (r"blocks/(\d+)/shortcut", "{block}.downsample.0"),
    (r"blocks/(\d+)/shortcut_norm", "{block}.downsample.1"),
    (r"classifier", "fc"),
)
_VIT = (
    (r"embedding", "patch_embed.proj"),
    (r"blocks/(\d+)/attention_norm", "blocks.{0}.norm1"),
    (r"blocks/(\d+)/attention/out", "blocks.{0}.attn.proj"),
    (r"blocks/(\d+)/mlp_norm", "blocks.{0}.norm2"),
    (r"blocks/(\d+)/hidden", "blocks.{0}.mlp.fc1"),
    (r"blocks/(\d+)/project", "blocks.{0}.mlp.fc2"),
    (r"norm", "norm"),
    (r"classifier", "head"),
)
_MOBILE = (
    (r"stem", "conv_stem"),
    (r"stem_norm", "bn1"),
    (r"blocks/0/depthwise", "blocks.0.0.conv_dw"),
    (r"blocks/0/depthwise_norm", "blocks.0.0.bn1"),
    (r"blocks/0/project", "blocks.0.0.conv_pw"),
    (r"blocks/0/project_norm", "blocks.0.0.bn2"),
    (r"blocks/(\d+)/expand", "{block}.conv_pw"),
    (r"blocks/(\d+)/expand_norm", "{block}.bn1"),
    (r"blocks/(\d+)/depthwise", "{block}.conv_dw"),
    (r"blocks/(\d+)/depthwise_norm", "{block}.bn2"),
    (r"blocks/(\d+)/project", "{block}.conv_pwl"),
    (r"blocks/(\d+)/project_norm", "{block}.bn3"),
    (r"last", "conv_head"),
    (r"last_norm", "bn2"),
    (r"classifier", "classifier"),
)
# Blocks of each stage.
_STAGES = {
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "mobilenetv2": (1, 2, 3, 4, 3, 3, 1),
}
_FAMILIES: dict[str, tuple[Any, str, int]] = {
    name: (_RESNET, "layer{0}.{1}", 1) for name in _STAGES if name.startswith("resnet")
}
_FAMILIES["mobilenetv2"] = (_MOBILE, "blocks.{0}.{1}", 0)
_FAMILIES["vit"] = (_VIT, "", 0)
_WHOLE = {"vit": {"token": "cls_token", "position": "pos_embed"}}
_QKV = ("query", "key", "value")
_ENDS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _module(model: str, name: str) -> str:
    """Torch's name of a module."""
    if model not in _FAMILIES:
        return name.replace("/", ".")
    patterns, block, first = _FAMILIES[model]
    for pattern, theirs in patterns:
        if found := re.fullmatch(pattern, name):
            if "{block}" in theirs:
                theirs = theirs.replace("{block}", _place(model, block, first, int(found[1])))
                return theirs.replace("{1}", found[2] if found.lastindex == 2 else "")
            return theirs.format(*found.groups())
    return name.replace("/", ".")


def _place(model: str, block: str, first: int, index: int) -> str:
    for stage, count in enumerate(_STAGES[model]):
        if index < count:
            return block.format(stage + first, index)
        index -= count
    raise ValueError(f"{model} has no block {index}")


def _axes(rank: int) -> tuple[int, ...]:
    """Of a kernel as torch has it."""
    return (rank - 1, rank - 2, *range(rank - 2))


def to_torch(model: str, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays under torch's names and layouts.

    Args:
        model: our name of the family, options after a colon or not.
        arrays: by our names, as in ``model/dense.npz``: ``param/...`` and ``state/...``.

    Returns:
        The arrays, and for each of theirs what it was made of: our name and shape (of query, key
        and value, which timm keeps in one array, three of them), for ``from_torch``.
    """
    model = model.partition(":")[0]
    parts: dict[str, list[tuple[str, np.ndarray, list[int]]]] = {}
    for ours, values in arrays.items():
        name = ours.split("/", 1)[1]
        module, _, leaf = name.rpartition("/")
        shape, end = list(values.shape), _ENDS.get(leaf, leaf)
        joined = model == "vit" and re.fullmatch(
            rf"(blocks/\d+)/attention/({'|'.join(_QKV)})", module
        )
        if name in _WHOLE.get(model, {}):
            theirs = _WHOLE[model][name]
        elif joined:
            # [width, heads, size] -> [heads * size, width]; bias [heads, size] -> [heads * size].
            theirs = f"{joined[1].replace('/', '.')}.attn.qkv.{end}"
            values = values.reshape(shape[0], -1).T if leaf == "kernel" else values.reshape(-1)
        else:
            theirs = f"{_module(model, module)}.{end}".lstrip(".")
            if leaf == "kernel":
                if model == "vit" and module.endswith("attention/out"):  # [heads, size, width]
                    values = values.reshape(-1, shape[-1])
                values = values.transpose(_axes(values.ndim))
        parts.setdefault(theirs, []).append((ours, values, shape))
    out, made = {}, {}
    for theirs, some in parts.items():
        if len(some) > 1:
            some = sorted(some, key=lambda part: _QKV.index(part[0].split("/")[-2]))
        out[theirs] = np.concatenate([part[1] for part in some]) if len(some) > 1 else some[0][1]
        made[theirs] = [[ours, shape] for ours, _, shape in some]
    # A count that torch keeps beside running statistics, and misses where it is not there.
    counts = [n.replace("running_mean", "num_batches_tracked") for n in out if "running_mean" in n]
    out |= {name: np.zeros((), np.int64) for name in counts}
    return {name: np.asarray(values, order="C") for name, values in out.items()}, made


def from_torch(
    model: str, arrays: Mapping[str, np.ndarray], made: Mapping[str, list[list[Any]]]
) -> dict[str, np.ndarray]:
    """What ``to_torch`` was given.

    Raises:
        KeyError: an array is missing.
        ValueError: an array of another size.
    """
    out = {}
    for theirs, parts in made.items():
        pieces = np.split(arrays[theirs], len(parts))
        for (ours, shape), piece in zip(parts, pieces, strict=True):
            if ours.endswith("/kernel"):
                piece = piece.transpose(np.argsort(_axes(piece.ndim)))
            out[ours] = np.ascontiguousarray(piece.reshape(shape))
    return out
