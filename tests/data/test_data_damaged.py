"""Image files that cannot be used: told together, or left out and counted."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fairbilevel.data import DataError, Options, load

SKIP = Options(skip_damaged=True)


def saved(pixels, form="PNG", **options):
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, form, **options)
    return stream.getvalue()


def folders(picture, count=8):
    return {f"{'ab'[i % 2]}/{i}.png": picture(i) for i in range(count)}


def damaged(files, *numbers):
    """The same with so many of them cut short."""
    names = [n for n in files if int(n[2:-4]) in numbers]
    return files | {n: files[n][:70] for n in names}


def test_all_that_are_damaged_are_counted_and_three_named(place, picture):
    files = folders(picture, 10)
    with pytest.raises(DataError) as caught:
        load(place(damaged(files, 1, 2, 5, 6, 7)))
    said = str(caught.value)
    assert said.startswith("5 of 10 image files cannot be used: a/2.png cannot be decoded")
    assert all(name in said for name in ("a/6.png", "b/1.png", "and 2 more", "--skip-damaged"))
    assert not any(name in said for name in ("b/5.png", "b/7.png"))
    assert "\n" not in said


def test_damaged_ones_are_left_out_and_reported(place, picture):
    files = folders(picture)
    sound = load(place(files, "sound"))
    data = load(place(damaged(files, 2, 5), "torn"), SKIP)
    kept = ~np.isin(sound.ids, ["2.png", "5.png"])
    assert data.skipped == {"image file cannot be used: 2.png, 5.png": 2}
    for name in ("inputs", "y", "group", "ids"):
        np.testing.assert_array_equal(getattr(data, name), getattr(sound, name)[kept])
    assert load(place(files, "sound2"), SKIP).skipped == {}


def test_names_and_weights_stay_with_their_rows(place, picture):
    files = {f"{i}.png": picture(i) for i in range(6)}
    rows = "".join(f"{i}.png,{'ab'[i % 2]},{'gh'[i // 3]},{i + 1},p{i}\n" for i in range(6))
    files |= {
        "labels.csv": b"file,label,group,w,who\n" + rows.encode(),
        "0.png": b"",
        "4.png": b"?",
    }
    data = load(place(files), Options(skip_damaged=True, weight="w", unit="who"))
    assert data.ids.tolist() == ["1.png", "2.png", "3.png", "5.png"]
    assert data.unit.tolist() == ["p1", "p2", "p3", "p5"]
    np.testing.assert_allclose(data.weight, np.array([2, 3, 4, 6]) / 3.75, rtol=1e-6)


def test_a_class_of_damaged_images_is_gone(place, picture):
    files = folders(picture) | {"c/8.png": b"no image"}
    assert load(place(files), SKIP).classes == ("a", "b")
    with pytest.raises(DataError, match="single group"):
        load(place(damaged(folders(picture), 1, 3, 5, 7), "one"), SKIP)


def test_nothing_but_damage_is_refused_in_any_case(place, picture):
    with pytest.raises(DataError, match=r"8 of 8 image files .* may be no collection of images"):
        load(place(damaged(folders(picture), *range(8))), SKIP)


def test_a_damaged_member_of_a_zip_is_one_file(tmp_path, picture):
    import zipfile

    path = tmp_path / "i.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in folders(picture).items():
            archive.writestr(name, data)
    raw = bytearray(path.read_bytes())
    raw[60] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"1 of 8 .* a/0.png in .* cannot be read"):
        load(path)
    assert load(path, SKIP).skipped == {"image file cannot be used: 0.png": 1}


@pytest.mark.parametrize("given", [{"split": "test"}, {"data_dir": "here"}, {"download": True}])
def test_options_of_tensorflow_belong_there(given):
    with pytest.raises(DataError, match="is for TensorFlow data sets, and digits is none"):
        load("digits", Options(**given))


def test_the_option_belongs_to_image_files(tmp_path):
    with pytest.raises(DataError, match="skip_damaged is for folders and zips of images"):
        load("digits", SKIP)
    (tmp_path / "t.csv").write_text("x,y,g\n1,a,b\n2,b,c\n")
    with pytest.raises(DataError, match="skip_damaged is for"):
        load(tmp_path / "t.csv", Options(target="y", group="g", skip_damaged=True))


def ramp(mode):
    return Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert(mode)


def frames():
    stream = io.BytesIO()
    one, two = (Image.fromarray(np.full((8, 8), v, np.uint8)) for v in (10, 200))
    one.save(stream, "GIF", save_all=True, append_images=[two])
    return stream.getvalue()


# Sound files of odd kinds, and how many channels they make.
ODD = {
    "CMYK": (lambda: saved(ramp("CMYK"), "JPEG"), 3),
    "a palette": (lambda: saved(ramp("P")), 3),
    "one bit": (lambda: saved(ramp("1")), 1),
    "with transparency": (lambda: saved(ramp("RGBA")), 3),
    "grey with transparency": (lambda: saved(ramp("LA")), 3),
    "lab colours": (lambda: saved(ramp("RGB").convert("YCbCr"), "JPEG"), 3),
    "several frames": (frames, 3),
    "a bitmap": (lambda: saved(ramp("RGB"), "BMP"), 3),
    "webp": (lambda: saved(ramp("RGB"), "WEBP"), 3),
    "a JPEG named as PNG": (lambda: saved(ramp("L"), "JPEG"), 1),
    "something behind its end": (lambda: saved(ramp("L")) + b"behind", 1),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_images_are_read(kind, place):
    content, channels = ODD[kind]
    data = load(place({"a/0.png": content(), "b/0.png": content()}))
    assert data.inputs.shape == (2, 8, 8, channels)
    assert data.inputs.dtype == np.uint8


def huge_header():
    """A sound PNG whose header promises a hundred thousand pixels each way."""
    import struct
    import zlib

    raw = bytearray(saved(ramp("L")))
    raw[16:24] = struct.pack(">II", 100_000, 100_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    return bytes(raw)


USELESS = {
    "16 bits": (lambda: saved(np.zeros((8, 8), np.uint16)), "more than 8 bits per pixel"),
    "32 bits": (lambda: saved(np.zeros((8, 8), np.int32), "TIFF"), "more than 8 bits per pixel"),
    "floats": (lambda: saved(np.zeros((8, 8), np.float32), "TIFF"), "more than 8 bits per pixel"),
    "promised pixels": (huge_header, "pixels"),
    "a header alone": (lambda: saved(ramp("RGB"))[:33], "cannot be decoded"),
    "nothing": (lambda: b"", "of no known format"),
    "zeros": (lambda: bytes(200), "of no known format"),
    "a web page": (lambda: b"<html>404</html>", "of no known format"),
    "an archive": (lambda: b"PK\x03\x04" + bytes(60), "of no known format"),
    "a truncated GIF": (lambda: frames()[:40], "cannot be decoded"),
}


@pytest.mark.parametrize("kind", USELESS)
def test_useless_images_are_told_or_left_out(kind, place, picture):
    content, message = USELESS[kind]
    files = folders(picture) | {"a/9.png": content()}
    path = place(files)
    with pytest.raises(DataError, match=f"1 of 9 image files cannot be used: a/9.png.*{message}"):
        load(path)
    assert len(load(path, SKIP)) == 8


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (300, 1)])
def test_images_of_a_pixel_or_a_line(size, place, picture):
    files = {f"{c}/{i}.png": picture(i + ord(c), size) for c in "ab" for i in range(2)}
    assert load(place(files)).inputs.shape == (4, *size[::-1], 3)
    assert load(place(files, "more"), Options(image_size=4)).inputs.shape == (4, 4, 4, 3)


def test_a_run_leaves_them_out_and_so_does_its_evaluation(tmp_path, picture, capsys):
    import zipfile

    from fairbilevel.cli import main

    path = tmp_path / "i.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in damaged(folders(picture, 240), 7, 100).items():
            archive.writestr(name, data)
    words = ["--data", str(path), "--model", "mlp", "--width", "4", "--steps", "30"]
    words += ["--dense-steps", "10", "--batch-size", "16", "--sparsity", "0.5", "--no-baseline"]
    words += ["--out", str(tmp_path / "run")]
    assert main(["solve", *words]) == 2
    assert "2 of 240 image files cannot be used: a/100.png" in capsys.readouterr().err
    assert main(["solve", *words, "--skip-damaged"]) == 0
    said = "image file cannot be used: 100.png, 7.png"
    assert said in (tmp_path / "run" / "report.html").read_text()
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(path)]) == 0
    assert f"skipped 2: {said}" in " ".join(capsys.readouterr().out.split())
    assert main(["certify", str(tmp_path / "run"), "--tolerance", "90%"]) in (0, 4, 5)
