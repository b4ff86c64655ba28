"""Synthetic images that can be learned, written shard by shard: data of any size, a little memory.

    python -m experiments.make_rows rows                      # 600,000 rows of 48x48x3, 4 GB
    python -m experiments.make_rows rows --rows 50000 --one   # one x.npy instead of shards

A row is noise over one of two faint patterns, its class; of two groups the smaller one has the
fainter pattern. Row ``i`` is the same however many rows and shards there are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

BLOCK = 1_000  # rows that are drawn together
NOISE = 160
FAINT = (48, 24)  # brightness of the pattern by group


def block(number: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, labels and groups of one block of rows."""
    rng = np.random.default_rng([seed, number])
    x = rng.integers(0, NOISE, (BLOCK, size, size, 3), np.uint8)
    y = rng.integers(0, 2, BLOCK)
    group = (rng.random(BLOCK) < 0.25).astype(np.int64)
    high, wide = np.mgrid[:size, :size] // max(size // 6, 1)
    stripes = np.stack([high % 2, wide % 2]).astype(np.uint8)[..., None]
    x += stripes[y] * np.array(FAINT, np.uint8)[group][:, None, None, None]
    return x, y, group


def write(folder: Path, rows: int, shard_rows: int, size: int, seed: int) -> None:
    """``x-00000.npy``, ... (``x.npy`` where one shard takes all), ``y.npy`` and ``group.npy``."""
    folder.mkdir(parents=True, exist_ok=True)
    labels, groups = [], []
    shards = -(-rows // shard_rows)
    for shard in range(shards):
        begin, end = shard * shard_rows, min((shard + 1) * shard_rows, rows)
        name = "x.npy" if shards == 1 else f"x-{shard:05d}.npy"
        with (folder / name).open("wb") as stream:
            shape = (end - begin, size, size, 3)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for number in range(begin // BLOCK, -(-end // BLOCK)):
                part = slice(max(begin - number * BLOCK, 0), end - number * BLOCK)
                x, y, group = (each[part] for each in block(number, size, seed))
                stream.write(x.tobytes())
                labels.append(y.astype(np.int8))
                groups.append(group.astype(np.int8))
    np.save(folder / "y.npy", np.concatenate(labels))
    np.save(folder / "group.npy", np.concatenate(groups))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--shard-rows", type=int, default=50_000)
    parser.add_argument("--one", action="store_true", help="one file instead of shards")
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shard_rows = options.rows if options.one else options.shard_rows
    write(options.folder, options.rows, shard_rows, options.size, options.seed)


if __name__ == "__main__":
    main()
