"""Source TensorFlow Datasets, by name and without TensorFlow.

Reads through `tfds.data_source`, so the data must be prepared as ArrayRecord (or Parquet) files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce
from operator import getitem
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd
from PIL import Image

from ._assemble import sample_rows
from ._errors import DataError, did_you_mean, listing, reason, refuse_unknown
from ._faces import GROUP, TARGET
from ._images import resize, stack_images
from ._source import Location, Request, Rows, Source
from ._stores import StoredRows, held, select

_AT_ONCE = 256  # examples that are read together
_PREFIX = "tfds:"


class TensorFlowDatasets(Source):
    """`tfds:NAME`, or the bare name of one of a few well-known data sets."""

    forms = "tfds:NAME, or cifar10, celeb_a and the like"
    has_image_files = True
    has_splits = True
    known = ("celeb_a", "cifar10", "cifar100", "svhn_cropped", "mnist", "fashion_mnist")

    def matches(self, location: Location) -> bool:
        """The prefix, or a known name."""
        return location.text.startswith(_PREFIX) or location.text.partition("?")[0] in self.known

    def read(self, location: Location, request: Request) -> Rows:
        """Read one split. Attributes are the scalar features, by the last part of their name."""
        options = request.options
        name, _, query = location.text.removeprefix(_PREFIX).partition("?")
        settings = dict(parse_qsl(query))
        for key in settings:
            refuse_unknown(f"{location.text!r} sets {key!r}", key, ("data_dir", "split"))
        split = options.split or settings.get("split") or "train"
        data_dir = options.data_dir or settings.get("data_dir")
        opened = partial(_open, name, split, data_dir, options.download)
        return _read_rows(opened, name, split, request)


def _open(name: str, split: str, data_dir: str | None, download: bool, decoders: Any = None) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise DataError(f"tfds:{name} needs the package tensorflow-datasets; install it.") from None
    splits: list[str] = []
    try:
        source = tfds.data_source(
            name,
            split=split,
            data_dir=data_dir,
            download=download,
            decoders=decoders,
            # Only what is written now is ours to choose; what is there says its own format.
            builder_kwargs={"file_format": "array_record"} if download else None,
        )
        len(source)  # Opens the files, so that what is missing is told here.
        return source
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise DataError(
            f"TensorFlow Datasets has no {name!r}{did_you_mean(name, known)}"
            + (f", and none is prepared in {data_dir}." if data_dir else ".")
        ) from None
    except ImportError as error:
        raise DataError(
            f"tfds:{name} cannot be read here ({error}); install what is missing (reading "
            "needs array_record, or a data set prepared as Parquet)."
        ) from None
    except (KeyError, ValueError, OSError, AssertionError, RuntimeError) as error:
        if isinstance(error, KeyError | ValueError):
            # Only asked to improve a message; the message for unprepared data follows.
            with contextlib.suppress(Exception):
                splits = list(tfds.builder(name, data_dir=data_dir).info.splits)
        if splits:
            told = f"tfds:{name} has no split {split!r}; it has {listing(splits)}."
            raise DataError(told) from None
        why = reason(error).split(". ")[0][:160].strip('".')
        where = f" --data_dir={data_dir}" if data_dir else ""
        raise DataError(
            f"tfds:{name} is not prepared here ({why}); run 'tfds build {name} "
            f"--file_format=array_record{where}' where there is a network, name its folder as "
            "--data-dir, or set --download."
        ) from None


@dataclass(frozen=True, eq=False)
class _Images:
    """The images of a data source, decoded whenever they are read: a `RowStore`."""

    source: Any
    key: tuple[str, ...]
    name: str
    request: Request
    shape: tuple[int, ...]

    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        numbers = rows.tolist()
        for i, example in enumerate(self.source.__getitems__(numbers)):
            row_name = f"{self.name} row {numbers[i]}"
            image = _image(reduce(getitem, self.key, example), row_name, self.request)
            if image.shape[:2] != out.shape[1:3] or image.shape[2] > out.shape[3]:
                raise DataError(
                    f"images differ in size: {row_name} has {image.shape[1]} x {image.shape[0]} "
                    f"pixels, others {out.shape[2]} x {out.shape[1]}; give an image size to resize "
                    "to."
                )
            out[i] = image
        return out


def _read_rows(opened: Callable[..., Any], name: str, split: str, request: Request) -> Rows:
    import tensorflow_datasets as tfds

    source = opened()
    features = dict(_leaves(source.dataset_info.features))
    image_key = next((k for k, f in features.items() if isinstance(f, tfds.features.Image)), None)
    if image_key is None:
        raise DataError(f"tfds:{name} has no image feature; only image data sets can be read.")
    scalars = {k: f for k, f in features.items() if k != image_key and f.shape == ()}
    last = [k[-1] for k in scalars]
    # A leaf name is enough where no other feature ends alike.
    short = {k: k[-1] if last.count(k[-1]) == 1 else "/".join(k) for k in scalars}

    chosen = sample_rows(len(source), request.options.max_rows)
    if not len(chosen):
        raise DataError(f"split {split!r} of tfds:{name} has no rows.")
    values: dict[tuple[str, ...], list[Any]] = {k: [] for k in scalars}
    first = _image(reduce(getitem, image_key, source[int(chosen[0])]), f"{name} {split}", request)
    stays = not held(request.options.in_memory, len(chosen) * first.nbytes)
    # Attributes alone: images that are decoded whenever they are read are not decoded for these.
    skipping: Any = tfds.decode.SkipDecoding()
    for name_of_key in reversed(image_key):
        skipping = {name_of_key: skipping}

    def told(example: Any) -> Any:
        """An example whose attributes have been noted."""
        for key in scalars:
            values[key].append(reduce(getitem, key, example))
        return example

    inputs: np.ndarray | StoredRows | None
    if stays:
        attributes = opened(skipping)
        for start in range(0, len(chosen), _AT_ONCE):
            for example in attributes.__getitems__(chosen[start : start + _AT_ONCE].tolist()):
                told(example)
        shape = (len(source), *first.shape)
        store = _Images(source, image_key, f"{name} {split}", request, shape)
        inputs = StoredRows(store, shape, store.dtype).take(chosen)
    else:
        names = [f"{name} {split} row {i}" for i in chosen]
        found = (reduce(getitem, image_key, told(source[i])) for i in chosen.tolist())
        images = zip(names, found, strict=True)
        inputs = stack_images(((n, _image(e, n, request)) for n, e in images), len(names))
    assert inputs is not None
    columns, orders = {}, {}
    for key, feature in scalars.items():
        columns[short[key]], order = _named(feature, short[key], values[key], tfds)
        if order:
            orders[short[key]] = order
    target = next((name for name in ("label", TARGET) if name in columns), None)
    subset = f"A random subset of {len(chosen)} of {len(source)} rows."
    return Rows(
        name=f"tfds:{name} ({split})",
        attributes=pd.DataFrame(columns, index=range(len(chosen))),
        read=lambda rows: select(inputs, rows),
        ids=np.char.add(f"{split}:", chosen.astype(f"U{len(str(len(source)))}")),
        target=target,
        group=GROUP if target == TARGET else ((target,) if target else ()),
        orders=orders,
        numbered=True,
        notes=[subset] if len(chosen) < len(source) else [],
    )


def _leaves(features: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, feature in features.items():
        if hasattr(feature, "items"):
            yield from _leaves(feature, (*path, key))
        else:
            yield (*path, key), feature


def _image(value: Any, name: str, request: Request) -> np.ndarray:
    pixels = np.asarray(value)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise DataError(f"{name} is no 8-bit image (shape {pixels.shape}, {pixels.dtype}).")
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels[..., :3])
    return resize(image, request.options.image_size)


def _named(
    feature: Any, name: str, values: list[Any], tfds: Any
) -> tuple[list[Any], tuple[str, ...] | None]:
    """Return the values as names, None for the label -1 of unlabelled rows, and their order."""
    if isinstance(feature, tfds.features.ClassLabel):
        order = tuple(feature.int2str(i) for i in range(feature.num_classes))
        return [order[int(v)] if int(v) >= 0 else None for v in values], order
    if np.dtype(feature.np_dtype).kind == "b":
        order = (f"not {name}", name)
        return [order[bool(v)] for v in values], order
    if np.dtype(feature.np_dtype).kind in "iuf":
        return [np.asarray(v).item() for v in values], None
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values], None
