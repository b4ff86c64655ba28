"""Rows that are not held in memory: read by the batch, and the same as those that are."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import fairbilevel as fb
from fairbilevel.cli import main
from fairbilevel.cli._progress import Passes, Progress
from fairbilevel.data import (
    DataError,
    Encoder,
    Options,
    RowStore,
    StoredRows,
    coarse_fingerprints,
    coarse_scale,
    convert,
    from_arrays,
    load,
    row_fingerprints,
    split_roles,
    watch_passes,
)
from fairbilevel.data._raw import write_records
from fairbilevel.train import Feed

ROWS = 240
RNG = np.random.default_rng(0)
Y = np.arange(ROWS) % 2
G = np.arange(ROWS) // 2 % 3
X = RNG.integers(0, 200, (ROWS, 6, 6, 3), dtype=np.uint8)
X[Y == 1, :3] += 50
X[5] = X[9]  # copies of one image share a role
LAZY = Options(in_memory="no")


class Own:
    """Ten lines of a user; it remembers how much it was asked for at once."""

    def __init__(self, x: np.ndarray):
        self.x, self.shape, self.dtype, self.asked = x, x.shape, x.dtype, []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.asked.append(len(rows))
        return self.x[rows]


def labels(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes and groups of so many rows: `Y` and `G`."""
    rows = np.arange(len(x))
    return rows % 2, rows // 2 % 3


def arrays(folder: Path, x: np.ndarray = X, shards: int = 1) -> Path:
    """A folder of arrays."""
    folder.mkdir()
    for i, part in enumerate(np.array_split(x, shards)):
        np.save(folder / ("x.npy" if shards == 1 else f"x-{i}.npy"), part)
    for name, values in zip(("y", "group"), labels(x), strict=True):
        np.save(folder / f"{name}.npy", values)
    return folder


def records(folder: Path, x: np.ndarray = X) -> Path:
    """A folder that `convert` wrote."""
    convert(arrays(folder.parent / "plain", x), folder, shard_rows=70)
    return folder


def png(image: np.ndarray) -> bytes:
    """An image file, which holds every pixel as it is."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def files(x: np.ndarray) -> dict[str, bytes]:
    """PNGs with a table of labels."""
    told = enumerate(zip(*labels(x), strict=True))
    lines = ["file,label,group", *(f"{i:03d}.png,{y},{g}" for i, (y, g) in told)]
    images = {f"{i:03d}.png": png(image) for i, image in enumerate(x)}
    return {"labels.csv": "\n".join(lines).encode(), **images}


def pictures(path: Path, x: np.ndarray = X) -> Path:
    """A zip of PNGs."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files(x).items():
            archive.writestr(name, data)
    return path


def picture_folder(path: Path, x: np.ndarray) -> Path:
    path.mkdir()
    for name, data in files(x).items():
        (path / name).write_bytes(data)
    return path


def picture_table(path: Path, x: np.ndarray) -> Path:
    """A Parquet file of PNGs in some row groups."""
    y, group = labels(x)
    table = pd.DataFrame({"image": [png(image) for image in x], "label": y, "group": group})
    table.to_parquet(path, row_group_size=70)
    return path


def archive(path: Path, x: np.ndarray) -> Path:
    y, group = labels(x)
    np.savez(path, x=x, y=y, group=group)
    return path


def table_beside(folder: Path, x: np.ndarray) -> Path:
    """Shards with more than ten numbers, and a CSV in place of arrays."""
    arrays(folder, x, shards=11)
    for name in ("y.npy", "group.npy"):
        (folder / name).unlink()
    lines = (f"{y},{g}" for y, g in zip(*labels(x), strict=True))
    (folder / "labels.csv").write_text("\n".join(["y,group", *lines]))  # the only table
    return folder


FORMS = {
    "npy": lambda path, x=X: arrays(path / "rows", x),
    "shards": lambda path, x=X: arrays(path / "rows", x, shards=11),
    "csv": lambda path, x=X: table_beside(path / "rows", x),
    "npz": lambda path, x=X: archive(path / "rows.npz", x),
    "records": lambda path, x=X: records(path / "rows", x),
    "zip": lambda path, x=X: pictures(path / "rows.zip", x),
    "folder": lambda path, x=X: picture_folder(path / "rows", x),
    "parquet": lambda path, x=X: picture_table(path / "rows.parquet", x),
    "file": lambda path, x=X: arrays(path / "rows", x) / "x.npy",
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_the_same_wherever_they_lie(form, tmp_path):
    path = FORMS[form](tmp_path)
    held, data = load(path), load(path, LAZY)
    expected = from_arrays(X, Y, G)
    assert isinstance(held.inputs, np.ndarray)
    assert isinstance(data.inputs, StoredRows)
    assert isinstance(data.inputs.store, RowStore)
    np.testing.assert_array_equal(held.inputs, X)
    np.testing.assert_array_equal(data.inputs[::-7], X[::-7])
    np.testing.assert_array_equal(data.take(np.array([7, 3, 7])).inputs[:], X[[7, 3, 7]])
    assert data.fingerprint == held.fingerprint
    if form not in ("zip", "folder"):  # their ids are file names
        assert data.fingerprint == expected.fingerprint
    for role, rows in split_roles(expected, seed=3).items():
        np.testing.assert_array_equal(split_roles(data, seed=3)[role], rows)
    ours, theirs = row_fingerprints(data), row_fingerprints(expected)
    np.testing.assert_array_equal(ours.row, theirs.row)
    scale = coarse_scale(data)
    np.testing.assert_array_equal(scale, coarse_scale(expected))
    np.testing.assert_array_equal(
        coarse_fingerprints(data, scale), coarse_fingerprints(expected, scale)
    )
    assert data.notes[-1] == expected.notes[-1]  # two copies were noticed
    fit = np.arange(0, ROWS, 3)
    assert Encoder.fit(data, fit) == Encoder.fit(expected, fit)


def test_image_files_differ_in_depth(tmp_path, picture):
    """Grey ones among coloured ones become coloured, whichever comes first."""
    files = {
        f"{c}/{i}.png": picture(i, mode="L" if i % 2 else "RGB") for i in range(6) for c in "ab"
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    lazy = load(tmp_path, LAZY)
    np.testing.assert_array_equal(lazy.inputs[:], load(tmp_path).inputs)
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 12 image files cannot be used: a/0.png"):
        load(tmp_path, LAZY)
    skipped = load(tmp_path, Options(in_memory="no", skip_damaged=True))
    assert len(skipped) == 11
    assert skipped.skipped == {"image file cannot be used: a/0.png": 1}
    (tmp_path / "b" / "0.png").write_bytes(picture(0, size=(9, 9)))
    with pytest.raises(DataError, match="images differ in size"):
        load(tmp_path, Options(in_memory="no", skip_damaged=True))


def test_memory_maps_are_read_from_their_files(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X)
    whole = np.load(path, mmap_mode="r")
    for mapped, rows in ((whole, X), (whole[10:200:3], X[10:200:3]), (whole[5:], X[5:])):
        data = from_arrays(mapped, Y[: len(rows)], G[: len(rows)])
        assert isinstance(data.inputs, StoredRows)
        np.testing.assert_array_equal(data.inputs[:], rows)
    # What lies otherwise in the file, or was changed in memory alone, is held.
    private = np.load(path, mmap_mode="c")
    private[0] = 7
    for mapped in (private, whole[:, ::2], whole[::-1]):
        data = from_arrays(mapped, Y, G)
        assert isinstance(data.inputs, np.ndarray)
        np.testing.assert_array_equal(data.inputs, mapped)
    big = np.lib.format.open_memmap(tmp_path / "n.npy", "w+", ">f8", (ROWS, 4))
    big[:] = RNG.normal(1e6, 1, big.shape)
    big.flush()
    data, expected = from_arrays(big, Y, G), from_arrays(np.array(big), Y, G)
    np.testing.assert_array_equal(data.inputs[:], expected.inputs)
    assert data.fingerprint == expected.fingerprint
    ours, theirs = (Encoder.fit(d, np.arange(100)).moments for d in (data, expected))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)  # a million times the deviation


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (RNG.integers(0, 9, (ROWS, 5)), np.int32),
        (RNG.integers(0, 9, (ROWS, 5)) * 2**40, np.float32),
        (RNG.normal(size=(ROWS, 5)), np.float32),
        (RNG.integers(0, 255, (ROWS, 5), np.uint8), np.int32),
        (X[..., 0], np.uint8),
    ],
)
def test_a_store_of_ones_own(values, dtype):
    store = Own(values)
    data, expected = from_arrays(store, Y, G), from_arrays(values, Y, G)
    assert data.inputs.dtype == expected.inputs.dtype == dtype
    assert data.fingerprint == expected.fingerprint
    encoder = Encoder.fit(expected, np.arange(ROWS))
    encoded = encoder.transform(data.inputs)
    np.testing.assert_array_equal(encoded[:], encoder.transform(expected.inputs))
    np.testing.assert_array_equal(encoder.transform(Own(values))[3], encoded[3])


def test_numbers_that_are_not_finite_are_found():
    values = RNG.normal(size=(ROWS, 5))
    values[[3, 8], 2] = np.inf
    with pytest.raises(DataError, match="missing or infinite numbers in 2 rows"):
        from_arrays(Own(values), Y, G)


class Liar(Own):
    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return super().__getitem__(rows)[:, :2]


def test_a_store_that_gives_other_rows_than_it_says():
    with pytest.raises(
        DataError, match=r"Liar gave uint8 \[\d+, 2, 6, 3\] where uint8 \[\d+, 6, 6"
    ):
        from_arrays(Liar(X), Y, G)


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def problems() -> list[fb.FairPruningProblem]:
    options = dict(constraints=[fb.fairness.ExcessAccuracyGap(0.02)], width=4)
    return [fb.FairPruningProblem("mlp", x, Y, G, **options) for x in (X, Own(X))]


def test_masks_are_the_same_and_nothing_is_read_at_once(problems):
    held, stored = (
        fb.solve(p, steps=24, sparsity=0.5, batch_size=8, dense_steps=8) for p in problems
    )
    for a, b in zip(jax.tree.leaves(held.masks), jax.tree.leaves(stored.masks), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(held.reference.logits, stored.reference.logits)
    assert all(0 <= entry["waiting"] <= 1 for entry in stored.history)
    np.testing.assert_array_equal(held.logits(X), stored.logits(Own(X)))


SOME = np.random.default_rng(1).integers(0, 200, (600, 12, 12, 3), dtype=np.uint8)
SOME[labels(SOME)[0] == 1, :5] += 50


def solved(data: fb.data.Dataset) -> fb.Solution:
    constraint = fb.fairness.ExcessAccuracyGap(0.02)
    problem = fb.FairPruningProblem("mlp", data, constraints=constraint, width=6)
    return fb.solve(problem, steps=6, sparsity=0.5, batch_size=16, dense_steps=6)


@pytest.fixture(scope="module")
def from_memory() -> fb.Solution:
    return solved(from_arrays(SOME, *labels(SOME)))


@pytest.mark.parametrize("form", [*(f for f in FORMS if f not in ("csv", "file")), "map"])
def test_masks_are_the_same_wherever_rows_lie(form, tmp_path, from_memory):
    if form == "map":
        path = arrays(tmp_path / "rows", SOME) / "x.npy"
        data = from_arrays(np.load(path, mmap_mode="r"), *labels(SOME))
    else:
        data = load(FORMS[form](tmp_path, SOME), LAZY)
    assert isinstance(data.inputs, StoredRows)
    found = solved(data)
    for role, rows in from_memory.problem.roles.items():
        np.testing.assert_array_equal(found.problem.roles[role], rows)
    np.testing.assert_array_equal(
        row_fingerprints(data).row, row_fingerprints(from_memory.problem.data).row
    )
    both = (jax.tree.leaves((s.masks, s.network.params)) for s in (found, from_memory))
    for a, b in zip(*both, strict=True):
        np.testing.assert_array_equal(a, b)


def test_feeds_give_the_same_batches_whatever_is_asked_for(problems):
    """Whole stretches and parts of them, other rows, and a position gone back to."""
    held, stored = (Feed(p, None, 1) for p in problems)
    fit, select = (problems[0].roles[name] for name in ("fit", "select"))
    asked = [(fit, 0, 3, 8), (fit, 0, 1, 8), (select, 1, 2, 8), (fit, 0, 5, 8), (fit, 0, 2, 16),
             (select, 0, 2, 8), (fit, 0, 4, 8), (fit, 0, 0, 8)]  # fmt: skip
    for turn in range(2):
        for rows, stream, batches, size in asked:
            both = [f.take(rows, stream, batches, size, length=6) for f in (held, stored)]
            assert both[1].x.shape == (6, size, *X.shape[1:])
            for a, b in zip(*both, strict=True):
                np.testing.assert_array_equal(a[:batches], b[:batches])
        if not turn:
            for feed in (held, stored):
                feed.restore({"0": 16, "1": 8})
    assert max(problems[1].data.inputs.store.asked) <= ROWS
    assert stored.waited > 0


def test_rows_are_read_before_they_are_asked_for(problems):
    problem, rows = problems[1], problems[1].roles["fit"]
    feed, store = Feed(problem, None, 1), problem.data.inputs.store
    feed.take(rows, 0, 4, 8)
    [w[1].result() for w in feed._ahead[0]._waiting]
    store.asked.clear()
    taken = feed._ahead[0]._waiting[0][0].copy()
    batch = feed.take(rows, 0, 1, 8)
    np.testing.assert_array_equal(batch.x[0], X[taken])
    [w[1].result() for w in feed._ahead[0]._waiting]
    assert store.asked == []  # four batches were there, and three are still


ON_DEVICES = """
import numpy as np, fairbilevel as fb
from tests.data.test_data_stores import G, X, Y, Own
problems = [fb.FairPruningProblem("mlp", x, Y, G, width=4) for x in (X, Own(X))]
assert problems[0].placement.count == 4
feeds = [fb.train.Feed(p, None, 1) for p in problems]
for batches in (3, 1, 4):
    held, stored = (f.take(problems[0].roles["fit"], 0, batches, 8, length=5) for f in feeds)
    assert held.x.sharding == stored.x.sharding
    assert all(np.array_equal(a[:batches], b[:batches]) for a, b in zip(held, stored))
"""


def test_devices_take_their_rows_of_what_was_read_ahead():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run(
        [sys.executable, "-c", ON_DEVICES],
        env={**os.environ, **flags},
        cwd=Path(__file__).parents[2],
        check=True,
    )


def test_rows_cost_few_bytes(tmp_path):
    """Columns, roles, fingerprints and a reference: what 50,000 rows add to what 10,000 take."""
    peaks = []
    for rows in (10_000, 50_000):
        path = tmp_path / f"{rows}.npy"
        x = np.lib.format.open_memmap(path, "w+", np.uint8, (rows, 8, 8, 1))
        x[:] = np.random.default_rng(0).integers(0, 255, x.shape, np.uint8)
        x.flush()
        y, group = np.arange(rows) % 2, np.arange(rows) // 2 % 3
        mapped = np.load(path, mmap_mode="r")
        tracemalloc.start()
        problem = fb.FairPruningProblem("mlp", mapped, y, group, width=2)
        _ = problem.data.fingerprint
        row_fingerprints(problem.data)
        coarse_fingerprints(problem.data, coarse_scale(problem.data))
        problem.refer(problem.initial_network())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 40_000 < 150


def test_what_lies_beside_and_is_no_column_is_not_read(tmp_path):
    folder = arrays(tmp_path / "rows")
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (ROWS, 50_000))
    features.flush()
    size = features.nbytes
    np.savez(tmp_path / "rows.npz", x=X, y=Y, group=G, features=features)
    for source in (folder, tmp_path / "rows.npz"):
        tracemalloc.start()
        load(source, Options(in_memory="no"))
        assert tracemalloc.get_traced_memory()[1] < size / 4
        tracemalloc.stop()


# ---------------------------------------------------------------- convert


class Killed(BaseException):
    pass


def kill(what: str, done: int, total: int) -> None:
    """In the third shard of sixty rows."""
    if done > 120:
        raise Killed


def test_convert_goes_on_where_it_was_killed(tmp_path):
    source, out = arrays(tmp_path / "rows", shards=3), tmp_path / "out"

    with pytest.raises(Killed):
        convert(source, out, shard_rows=60, told=kill)
    with pytest.raises(DataError, match="conversion that did not end"):
        load(out)
    first = out / "x-00000.arrayrecord"
    when = first.stat().st_mtime_ns
    done = convert(source, out, shard_rows=60)
    assert (done.rows, done.shards, done.written) == (ROWS, 4, 2)
    assert first.stat().st_mtime_ns == when
    assert load(out).fingerprint == load(source).fingerprint
    assert convert(source, out, shard_rows=60).written == 0
    assert not [p for p in out.iterdir() if p.name.startswith(".")]
    other = arrays(tmp_path / "other", x=X[:, :5])
    for given in (other, "digits"):
        with pytest.raises(DataError, match="rows of another source"):
            convert(given, out, shard_rows=60)


def same(a, b):
    """Two data sets hold the same rows and say the same of themselves."""
    assert a.fingerprint == b.fingerprint
    for what in ("name", "target", "attributes", "skipped", "notes"):
        assert getattr(a, what) == getattr(b, what), what


def test_convert_keeps_what_a_source_knows(tmp_path):
    for source in ("digits", pictures(tmp_path / "rows.zip")):
        out = tmp_path / f"out-{Path(source).stem}"
        convert(source, out)
        same(load(source), load(out))
    small = load(tmp_path / "rows.zip", Options(image_size=4))
    convert(tmp_path / "rows.zip", tmp_path / "small", Options(image_size=4))
    np.testing.assert_array_equal(load(tmp_path / "small").inputs, small.inputs)


KEPT = {"rows.zip": pictures, "rows.parquet": picture_table}


@pytest.mark.parametrize("name", KEPT)
def test_image_files_are_kept_as_they_are(name, tmp_path):
    source, out = KEPT[name](tmp_path / name, X), tmp_path / "out"
    done = convert(source, out, keep_encoded=True, shard_rows=60)
    assert (done.rows, done.shards) == (ROWS, 4)
    for options in (Options(), Options(image_size=4), Options(image_size=4, in_memory="no")):
        a, b = load(source, options), load(out, options)
        same(a, b)
        np.testing.assert_array_equal(a.ids, b.ids)
        rows = np.array([ROWS - 1, 0, 61, 59])
        np.testing.assert_array_equal(np.asarray(a.inputs[rows]), np.asarray(b.inputs[rows]))


def test_kept_files_of_any_size_and_damaged_ones(tmp_path):
    folder = picture_folder(tmp_path / "rows", X)
    names = sorted(p.name for p in folder.glob("*.png"))
    (folder / names[3]).write_bytes(png(np.zeros((31, 17, 3), np.uint8)))
    (folder / names[5]).write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"1 of {ROWS} image files .*{names[5]}"):
        convert(folder, tmp_path / "none", keep_encoded=True)
    assert not (tmp_path / "none").exists()
    done = convert(folder, tmp_path / "out", Options(skip_damaged=True), keep_encoded=True)
    assert (done.rows, done.skipped) == (ROWS - 1, {"image file cannot be used": 1})
    small = Options(image_size=4, skip_damaged=True)
    assert load(tmp_path / "out", small).fingerprint == load(folder, small).fingerprint
    with pytest.raises(DataError, match="images differ in size"):
        load(tmp_path / "out")


def test_what_cannot_be_kept_encoded_is_refused(tmp_path):
    for source in (arrays(tmp_path / "rows"), "digits"):
        with pytest.raises(DataError, match=r"keep_encoded .* is none of these"):
            convert(source, tmp_path / "out", keep_encoded=True)
    zipped = pictures(tmp_path / "rows.zip")
    with pytest.raises(DataError, match="given where images are read"):
        convert(zipped, tmp_path / "out", Options(image_size=4), keep_encoded=True)
    assert not (tmp_path / "out").exists()
    convert(zipped, tmp_path / "out", keep_encoded=True, shard_rows=60)
    (tmp_path / "out" / "x-00003.arrayrecord").unlink()
    with pytest.raises(DataError, match=r"x-00003.arrayrecord is missing"):
        load(tmp_path / "out")


def test_what_was_written_badly_is_told(tmp_path):
    source, out = arrays(tmp_path / "rows"), tmp_path / "out"

    def damage(what: str, done: int, total: int) -> None:
        if what == "converting" and done == total:
            path = out / "x-00000.arrayrecord"
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 255
            path.write_bytes(data)

    with pytest.raises(DataError, match="does not hold what was written"):
        convert(source, out, shard_rows=100, told=damage)
    assert not (out / "rows.json").exists()
    convert(source, out, shard_rows=100)
    assert load(out).fingerprint == load(source).fingerprint


def test_a_source_that_has_changed_is_not_taken_for_what_was_converted(tmp_path):
    folder, out = picture_folder(tmp_path / "a", X), tmp_path / "out"
    convert(folder, out, Options(image_size=6))
    assert convert(folder, out, Options(image_size=6)).there
    table = folder / "labels.csv"
    table.write_text(table.read_text().replace("000.png,0", "000.png,1"))
    other = picture_folder(tmp_path / "b", X[::-1])
    for source in (folder, other):
        with pytest.raises(DataError, match="another source, or of this one as it was read"):
            convert(source, out, Options(image_size=6))

    with pytest.raises(Killed):
        convert(folder, tmp_path / "half", Options(image_size=6), shard_rows=60, told=kill)
    (folder / "100.png").write_bytes(png(X[7]))
    with pytest.raises(DataError, match="before it changed"):
        convert(folder, tmp_path / "half", Options(image_size=6), shard_rows=60)


def test_a_source_that_changes_meanwhile_is_told(tmp_path):
    folder = arrays(tmp_path / "rows")

    def change(what: str, done: int, total: int) -> None:
        np.save(folder / "y.npy", 1 - Y)

    with pytest.raises(DataError, match="changed while it was converted"):
        convert(folder, tmp_path / "out", told=change)
    assert not (tmp_path / "out" / "rows.json").exists()


def test_one_call_converts_at_a_time(tmp_path):
    folder, out = arrays(tmp_path / "rows"), tmp_path / "out"

    def again(what: str, done: int, total: int) -> None:
        with pytest.raises(ValueError, match=f"process {os.getpid()} is writing to"):
            convert(folder, out)

    convert(folder, out, told=again)
    assert load(out).fingerprint == load(folder).fingerprint


def test_a_full_disk_is_told(tmp_path):
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_records(Path("/dev/full"), (bytes(100_000) for _ in range(50)))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_records(tmp_path / "no" / "x.arrayrecord", iter([b"row"]))


# ---------------------------------------------------------------- mistakes


def no_first(folder: Path) -> None:
    (folder / "x-0.npy").unlink()


def no_last(folder: Path) -> None:
    for i in range(10):
        path = folder / f"x-{i}.npy"
        if i < 9:
            path.rename(folder / f"x-{i:05d}-of-00010.npy")
        else:
            path.unlink()


def no_middle(folder: Path) -> None:
    (folder / "x-4.npy").unlink()


def cut(folder: Path) -> None:
    path = folder / "x-4.npy"
    path.write_bytes(path.read_bytes()[:-7])


def other_shape(folder: Path) -> None:
    np.save(folder / "x-4.npy", X[:10, :5])


def other_type(folder: Path) -> None:
    np.save(folder / "x-4.npy", X[:10].astype(np.int16))


def short_column(folder: Path) -> None:
    np.save(folder / "y.npy", Y[:-3])


def by_columns(folder: Path) -> None:
    np.save(folder / "x-4.npy", np.asfortranarray(X[:22]))


def twice(folder: Path) -> None:
    np.save(folder / "x.npy", X)


def no_header(folder: Path) -> None:
    (folder / "x-4.npy").write_bytes(b"\x93NUMPY\x01\x00\x08\x00{'descr'")


def several_tables(folder: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (folder / name).write_text("age\n" + "1\n" * ROWS)


def other_table(folder: Path) -> None:
    (folder / "columns.csv").write_text("age\n1\n")


def gone(folder: Path) -> None:
    (folder / "y.npy").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "x-4.npy is cut short: it has 2,713 bytes where 24 rows"),
        (other_shape, r"shards differ: x-0.npy holds uint8 rows of shape \[6, 6, 3\] and x-4.npy"),
        (other_type, "x-4.npy int16 rows"),
        (short_column, r"y has shape \(237,\) where x has 240 rows"),
        (by_columns, "x-4.npy is stored column by column"),
        (twice, "holds x more than once"),
        (no_header, "x-4.npy is no readable array"),
        (several_tables, r"holds several tables \(a.csv, b.csv\)"),
        (other_table, "the table of rows has 1 rows where x has 240"),
        (gone, "has no array 'y'; it has x, group"),
        (no_first, r"y has shape \(240,\) where x has 216 rows"),
        (no_middle, "see number 4"),
        (no_last, "not every shard from the first to the last .see number 9"),
    ],
)
@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_broken_folders(change, message, in_memory, tmp_path, capsys):
    folder = arrays(tmp_path / "rows", shards=10)
    change(folder)
    with pytest.raises(DataError, match=message):
        load(folder, Options(in_memory=in_memory))
    words = ["--data", str(folder), "--out", str(tmp_path / "run"), "--in-memory", in_memory]
    assert main(["solve", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_broken_records(tmp_path):
    out = tmp_path / "out"
    records(out)
    whole = {p: p.read_bytes() for p in out.iterdir()}
    shard = out / "x-00001.arrayrecord"
    shard.write_bytes(whole[shard][: len(whole[shard]) // 2])
    with pytest.raises(DataError, match=r"00001\.arrayrecord is missing, cut short or no"):
        load(out)
    shard.write_bytes(whole[shard])
    about = out / "rows.json"
    told = json.loads(whole[about])
    for changes, message in (
        (
            {"shape": [6, 6, 4]},
            "record 0 of x-00000.arrayrecord has 108 bytes where a row of shape",
        ),
        ({"shape": None}, "no rows.json that says what a record is"),
        ({"dtype": "object"}, "no rows.json that says what a record is"),
        ({"rows": 3}, "has 240 rows of inputs, 240 of columns and 3"),
        ({"orders": 3}, "rows.json is malformed"),
        ({"shards": ["x-00000.arrayrecord"]}, "has 70 rows of inputs, 240 of columns"),
    ):
        about.write_text(json.dumps(told | changes))
        with pytest.raises(DataError, match=message):
            load(out)
    about.write_bytes(whole[about])
    (out / "columns.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load(out)


def test_records_that_cannot_be_read_are_left_out_where_asked(tmp_path):
    big = np.repeat(np.repeat(X, 8, 1), 8, 2)  # no more than a few rows a group of records
    out = tmp_path / "out"
    convert(arrays(tmp_path / "rows", x=big), out)
    path = out / "x-00000.arrayrecord"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    for in_memory in ("yes", "no"):
        with pytest.raises(DataError, match=r"record that cannot be read .*--skip-damaged"):
            load(out, Options(in_memory=in_memory))
        found = load(out, Options(in_memory=in_memory, skip_damaged=True))
        lost = ROWS - len(found)
        assert 0 < lost <= 8
        assert list(found.skipped.values()) == [lost]
        assert "record cannot be used" in next(iter(found.skipped))
        kept = found.ids.astype(int)
        np.testing.assert_array_equal(found.inputs[:], big[kept])
        np.testing.assert_array_equal(found.y, Y[kept])


def test_records_of_ones_own(tmp_path):
    """The bytes of rows, and a word on what they are."""
    records(tmp_path / "out")
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in (tmp_path / "out").glob("*.arrayrecord"):
        path.rename(folder / f"mine.array_record-{path.stem[2:]}-of-00004")
    np.save(folder / "y.npy", Y)
    np.save(folder / "group.npy", G)
    with pytest.raises(DataError, match=r'as {"shape": \[48, 48, 3\], "dtype": "uint8"}'):
        load(folder)
    (folder / "rows.json").write_text('{"shape": [6, 6, 3], "dtype": "uint8"}')
    assert load(folder).fingerprint == from_arrays(X, Y, G).fingerprint


def test_what_is_read_as_a_whole_cannot_stay_where_it_is(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=X, y=Y, group=G)
    for source in ("digits", tmp_path / "a.npz"):
        with pytest.raises(DataError, match="read as a whole, whatever in_memory says"):
            load(source, LAZY)
    (tmp_path / "t.csv").write_text("a,b,c\n" + "1,2,3\n4,5,6\n" * 5)
    with pytest.raises(DataError, match=r"t.csv is a table"):
        convert(tmp_path / "t.csv", tmp_path / "out")
    with pytest.raises(DataError, match="in_memory is 'maybe'"):
        Options(in_memory="maybe")


# ---------------------------------------------------------------- what is said


def test_passes_over_all_rows_are_told():
    told = []
    watch_passes(lambda what, done, total: told.append((what, done, total)))
    from_arrays(Own(X), Y, G)
    watch_passes(Passes())
    assert told == [("fingerprints", ROWS, ROWS)]


def test_long_passes_have_a_line(capsys, monkeypatch):
    import fairbilevel.cli._progress as progress

    clock = iter(np.arange(0, 100, 2.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    passes = Passes()
    for done in range(0, 101, 10):
        passes("fingerprints", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fairbilevel: fingerprints: 30 of 100 rows, 0:14 left"
    assert lines[-1] == "fairbilevel: fingerprints: 100 of 100 rows, 0:00 left"
    assert len(lines) == 4


def test_waiting_is_shown_where_it_costs(capsys):
    from rich.console import Console

    record = {
        "phase": "dense", "step": 5, "steps": 5, "seconds": 2.0, "compile_seconds": 1.0,
        "gradient_evaluations": 5.0, "loss": 0.5, "sparsity": 0.0, "tune": {"accuracy": 0.5},
    }  # fmt: skip
    progress = Progress(Console(width=200), 10)
    progress({**record, "waiting": 0.004})
    assert "waiting" not in capsys.readouterr().out
    progress({**record, "waiting": 0.25})
    assert "waiting for rows 25.0 %" in capsys.readouterr().out
