"""``fairbilevel convert``: any source as ArrayRecord shards."""

from __future__ import annotations

from dataclasses import dataclass

import tyro
from rich.console import Console

from fairbilevel.cli._parse import parse
from fairbilevel.cli._show import say


@dataclass(frozen=True)
class Convert:
    """Write any source of images or arrays as ArrayRecord shards, once, with its columns beside.

    Solving from the folder gives the roles, fingerprints and masks that the source gives. A call
    that was killed is gone on with by the same call; everything is read back at the end."""

    source: tyro.conf.Positional[str]
    """What to read, as --data of solve."""
    out: tyro.conf.Positional[str]
    """Folder to write: new, empty, or begun by the same call."""
    image_size: int | None = None
    """Resize images to this many pixels on both sides."""
    keep_encoded: bool = False
    """Keep image files as they are, to be decoded and resized whenever they are read: smaller, and
    --image-size is chosen when solving."""
    skip_damaged: bool = False
    """Leave out image files that cannot be decoded, and count them."""
    split: str | None = None
    """Split of a TensorFlow data set."""
    data_dir: str | None = None
    """Folder where TensorFlow data sets were prepared."""
    download: bool = False
    """Let TensorFlow Datasets download and prepare what is not there yet."""


def convert(words: list[str], console: Console) -> int:
    """Write the folder and say what is in it."""
    options = parse(Convert, "convert", words)
    from fairbilevel import data
    from fairbilevel.cli._progress import Passes

    asked = data.Options(
        image_size=options.image_size,
        skip_damaged=options.skip_damaged,
        split=options.split,
        data_dir=options.data_dir,
        download=options.download,
    )
    done = data.convert(
        options.source, options.out, asked, keep_encoded=options.keep_encoded, told=Passes()
    )
    for reason, count in done.skipped.items():
        say(console, f"skipped {count:,}: {reason}")
    before = done.shards - done.written
    kept = f", {before} of them written before" if before else ""
    how = ", complete before, nothing to do" if done.there else f"{kept}, read back"
    say(console, f"{done.rows:,} rows in {done.shards} shards{how}: {done.path}")
    return 0
