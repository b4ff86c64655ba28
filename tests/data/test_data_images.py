"""Image sources on tiny folders and zips in the original layouts."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from fairbilevel.data import DataError, Options, load
from fairbilevel.data._images import decode_image


def utk_files(picture, extra=()):
    names = [
        f"UTKFace/{age}_{gender}_{race}_2017010{i}150557335.jpg.chip.jpg"
        for i, (age, gender, race) in enumerate(
            [(1, 0, 0), (26, 1, 0), (35, 0, 1), (80, 1, 1), (116, 0, 4), (19, 1, 4)]
        )
    ]
    files = {n: picture(i, form="JPEG") for i, n in enumerate(names)}
    return files | {n: picture(99, form="JPEG") for n in extra}


MALFORMED = (
    "UTKFace/39_1_20170116174525125.jpg.chip.jpg",
    "UTKFace/61_1_20170109142408075.jpg.chip.jpg",
    "UTKFace/61_3_20170109150557335.jpg.chip.jpg",
)


def test_utkface(place, picture):
    path = place(utk_files(picture, MALFORMED) | {"UTKFace/readme.txt": b"x", ".DS_Store": b"x"})
    data = load(path)
    assert data.inputs.shape == (6, 8, 8, 3)
    assert data.inputs.dtype == np.uint8
    assert data.y.dtype == data.group.dtype == np.int32
    assert data.classes == ("Male", "Female")
    assert data.groups[:2] == ("White x Male", "White x Female")
    names = [(data.classes[y], data.groups[g]) for y, g in zip(data.y, data.group, strict=True)]
    by_id = dict(zip(data.ids, names, strict=True))
    assert by_id["35_0_1_20170102150557335.jpg.chip.jpg"] == ("Male", "Black x Male")
    assert data.skipped == {"file name is not age_gender_race_date.jpg": 3, "not an image file": 1}
    assert any("no model inputs" in n for n in data.notes)


def test_utkface_odd_names_of_the_release(place, picture):
    odd = (
        "UTKFace/24_0_1_20170116220224657 .jpg.chip.jpg",
        "UTKFace/55_0_0_20170116232725357jpg.chip.jpg",
    )
    assert len(load(place(utk_files(picture, odd)))) == 8


def test_utkface_age_bins(place, picture):
    path = place(utk_files(picture))
    by_decade = load(path, Options(target="age", group=("gender",)))
    assert by_decade.classes == ("0-9", "10-19", "20-29", "30-39", "80+")
    binned = load(path, Options(group=("age",), bins=("age=25,45",)))
    assert binned.groups == ("age<25", "25<=age<45", "age>=45")
    sizes = dict(zip(binned.groups, np.bincount(binned.group), strict=True))
    assert sizes == {"age<25": 2, "25<=age<45": 2, "age>=45": 2}


def test_group_may_be_the_target_and_attributes_are_checked(place, picture):
    path = place(utk_files(picture))
    data = load(path, Options(target="race", group=("race",)))
    assert data.classes == data.groups == ("White", "Black", "Others")
    assert (data.y == data.group).all()
    with pytest.raises(DataError, match=r"'gendre'.*did you mean 'gender'.*age, gender, race"):
        load(path, Options(target="gendre"))
    with pytest.raises(DataError, match=r"group is 'races'.*did you mean 'race'"):
        load(path, Options(group=("races",)))
    with pytest.raises(DataError, match="neither target nor group"):
        load(path, Options(bins=("age=30",)))
    with pytest.raises(DataError, match="single group"):
        load(path, Options(group=("age",), bins=("age=200",)))
    with pytest.raises(DataError, match="exclude_feature is for tables"):
        load(path, Options(exclude_feature=("race",)))


def celeba_text(rows):
    head = f"{len(rows)}\nBlond_Hair Male Smiling\n"
    return (head + "".join(f"{n}  {a:2d} {b:2d} {c:2d}\n" for n, a, b, c in rows)).encode()


CELEBA = [("000001.jpg", -1, 1, 1), ("000002.jpg", 1, -1, 1), ("000003.jpg", 1, 1, -1)]


def test_celeba_text_list(place, picture):
    files = {f"img_align_celeba/{r[0]}": picture(i) for i, r in enumerate(CELEBA)}
    files["img_align_celeba/000009.jpg"] = picture(9)
    files["list_attr_celeba.txt"] = celeba_text([*CELEBA, ("000007.jpg", 1, 1, 1)])
    files["identity_CelebA.txt"] = b"000001.jpg 5\n000002.jpg 6\n000003.jpg 5\n000007.jpg 5\n"
    path = place(files)
    data = load(path, Options(unit="identity"))
    assert data.classes == ("not Blond_Hair", "Blond_Hair")
    assert data.groups == ("not Male", "Male")
    assert data.y.tolist() == [0, 1, 1]
    assert data.group.tolist() == [1, 0, 1]
    assert data.unit.tolist() == ["5", "6", "5"]
    assert data.skipped == {"attributes without an image": 1, "image without attributes": 1}
    crossed = load(path, Options(target="Smiling", group=("Blond_Hair", "Male")))
    assert crossed.groups == ("not Blond_Hair x Male", "Blond_Hair x not Male", "Blond_Hair x Male")
    with pytest.raises(DataError, match="did you mean 'Smiling'"):
        load(path, Options(target="smilng"))


def test_celeba_csv_list_and_bad_lists(place, picture):
    files = {f"img_align_celeba/img_align_celeba/{r[0]}": picture(i) for i, r in enumerate(CELEBA)}
    rows = "\n".join(",".join(map(str, r)) for r in CELEBA)
    good = f"image_id,Blond_Hair,Male,Smiling\n{rows}\n"
    data = load(place(files | {"list_attr_celeba.csv": good.encode()}, "good"))
    assert data.y.tolist() == [0, 1, 1]
    for name, text, message in (
        ("values", good.replace("1,1,1", "1,2,1"), "neither -1 nor 1"),
        ("header", good.replace("image_id", "id"), "no column image_id"),
        ("twice", good + "000001.jpg,1,1,1\n", "names 000001.jpg twice"),
        ("empty", "", "no CelebA attribute list"),
    ):
        path = place(files | {"list_attr_celeba.csv": text.encode()}, name)
        with pytest.raises(DataError, match=message):
            load(path)


def labelled_folder(picture, csv):
    files = {f"pics/{i}.png": picture(i) for i in range(6)}
    return files | {"labels.csv": csv.encode()}


GOOD_CSV = "file,label,sex,age\n" + "".join(
    f"pics/{i}.png,{'ab'[i % 2]},{'MF'[i // 3]},{20 + i}\n" for i in range(5)
)


def test_folder_with_csv(place, picture):
    path = place(labelled_folder(picture, GOOD_CSV))
    data = load(path, Options(group=("sex",)))
    assert data.classes == ("a", "b")
    assert data.groups == ("F", "M")
    assert data.ids.tolist() == [f"pics/{i}.png" for i in range(5)]
    assert data.skipped == {"image without a row in labels.csv": 1}
    same = load(path)
    assert same.groups == ("a", "b")
    assert any("the groups are the classes" in n for n in same.notes)
    other = load(path, Options(target="sex", group=("age",), bins=("age=22",), positive="M"))
    assert other.classes == ("not M", "M")


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("name,label\na,b\n", "no column of file names.*name, label"),
        (GOOD_CSV + "pics/nope.png,a,M,3\n", "1 files that are not in.*nope.png"),
        (GOOD_CSV + "pics/0.png,a,M,3\n", "names pics/0.png twice"),
        (GOOD_CSV + "pics/5.png,,M,3\n", "target 'label' is missing in 1 rows.*pics/5.png"),
        (GOOD_CSV + "pics/5.png,a,,3\n", "group attribute 'sex' is missing in 1 rows"),
        (GOOD_CSV + ",a,M,3\n", "lacks the file name in 1 rows"),
        ("", "empty"),
        ("file,label,label\n", "column 'label' twice"),
        ("file,label\n", "no rows"),
    ],
)
def test_folder_with_bad_csv(place, picture, csv, message):
    with pytest.raises(DataError, match=message):
        load(place(labelled_folder(picture, csv)), Options(group=("sex",)))


def test_class_folders(place, picture):
    files = {f"train/{c}/{i}.png": picture(10 * i + ord(c)) for c in "ab" for i in range(3)}
    data = load(place(files | {"top.png": picture(0), "train/a/notes.txt": b"x"}))
    assert data.classes == data.groups == ("a", "b")
    assert data.ids[0] == "train/a/0.png"
    assert data.skipped == {"not an image file": 1, "image outside any class folder": 1}
    former = load(place(files, "former"), classes=("b", "a", "c"), groups=("b", "a", "c"))
    assert former.y.tolist() == [1, 1, 1, 0, 0, 0]
    with pytest.raises(DataError, match="label 'b', which is outside a, c"):
        load(place(files, "outside"), classes=("a", "c"), groups=("a", "c"))


def test_images_without_labels(place, picture):
    path = place({f"photos/{i}.png": picture(i) for i in range(3)})
    with pytest.raises(DataError, match=r"gives no labels.*labels.csv"):
        load(path)
    data = load(path, classes=("a", "b"), groups=("g", "h"), labelled=False)
    assert data.y.tolist() == data.group.tolist() == [-1, -1, -1]
    assert data.classes == ("a", "b")


def test_empty_folder(place, tmp_path):
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        load(tmp_path / "void")
    with pytest.raises(DataError, match="holds no images"):
        load(place({"a.txt": b"x"}))


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_undecodable_images_are_named(place, picture, damage):
    good = picture(0, (32, 32), form="JPEG")
    bad = {"truncated": good[: len(good) // 2], "text": b"hello", "empty": b""}[damage]
    files = {f"{c}/{i}.jpg": picture(i, (32, 32)) for c in "ab" for i in range(2)}
    with pytest.raises(DataError, match=r"b/bad.jpg cannot be decoded as an image"):
        load(place(files | {"b/bad.jpg": bad}))


def test_sizes_that_differ(place, picture):
    files = {"a/0.png": picture(0), "b/0.png": picture(1), "b/1.png": picture(2, (9, 7))}
    path = place(files)
    with pytest.raises(DataError, match=r"a/0.png has 8 x 8 pixels, b/1.png 9 x 7; give an image"):
        load(path)
    assert load(path, Options(image_size=6)).inputs.shape == (3, 6, 6, 3)


def test_grey_images_have_one_channel_unless_mixed(place, picture):
    files = {f"{c}/{i}.png": picture(i + ord(c), mode="L") for c in "ab" for i in range(2)}
    assert load(place(files, "grey")).inputs.shape == (4, 8, 8, 1)
    mixed = load(place(files | {"b/rgb.png": picture(5)}, "mixed"))
    assert mixed.inputs.shape == (5, 8, 8, 3)


def test_decoding_is_exact_and_resizing_is_antialiased(picture):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert (decode_image(buffer.getvalue(), "x") == pixels).all()
    small = decode_image(buffer.getvalue(), "x", 2).astype(float)
    # Antialiasing averages over the area: a plain 2 x 2 sample would stray far from the mean.
    assert np.abs(small.mean(axis=(0, 1)) - pixels.mean(axis=(0, 1))).max() < 12


def test_deep_images_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(buffer, "PNG")
    with pytest.raises(DataError, match="more than 8 bits"):
        decode_image(buffer.getvalue(), "deep.png")


def test_identical_images_are_noted(place, picture):
    files = {"a/0.png": picture(0), "a/1.png": picture(1), "b/0.png": picture(0)}
    data = load(place(files))
    assert any(
        "2 of 3 rows have images identical" in n and "2 with another" in n for n in data.notes
    )


def zipped(path, *entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png"]
)
def test_zip_paths_that_lead_outside(tmp_path, name):
    path = zipped(tmp_path / "evil.zip", (name, b"x"))
    with pytest.raises(DataError, match="points outside the zip"):
        load(path)


def test_zip_backslash_paths(tmp_path):
    path = zipped(tmp_path / "evil.zip", ("a\\..\\..\\evil.png", b"x"))
    with pytest.raises(DataError, match="points outside the zip"):
        load(path)


def test_zip_links_bombs_duplicates_and_rubbish(tmp_path):
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = 0o120777 << 16
    with pytest.raises(DataError, match="holds the link"):
        load(zipped(tmp_path / "link.zip", (link, "/etc/passwd")))
    bomb = zipped(tmp_path / "bomb.zip", ("a/zero.png", bytes(40 * 2**20)))
    with pytest.raises(DataError, match="grow more than 1000-fold"):
        load(bomb)
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = zipped(tmp_path / "twice.zip", ("a/0.png", b"x"), ("a/0.png", b"y"))
    with pytest.raises(DataError, match=r"'a/0.png' twice"):
        load(twice)
    (tmp_path / "rubbish.zip").write_bytes(b"no zip at all")
    with pytest.raises(DataError, match="not a readable zip"):
        load(tmp_path / "rubbish.zip")


def test_zip_with_a_damaged_entry(tmp_path, picture):
    path = zipped(tmp_path / "torn.zip", ("a/0.png", picture(0)), ("b/0.png", picture(1)))
    raw = bytearray(path.read_bytes())
    raw[60] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a/0.png in .* cannot be read"):
        load(path)


def test_a_subset_is_always_the_same(place, picture):
    path = place({f"{c}/{i}.png": picture(i + 100 * ord(c)) for c in "ab" for i in range(20)})
    one, two = (load(path, Options(max_rows=12)) for _ in range(2))
    assert (one.ids == two.ids).all()
    assert len(one) == 12
    assert "A random subset of 12 of 40 rows." in one.notes
    assert one.fingerprint == two.fingerprint != load(path).fingerprint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digts", "neither a known data set nor a path.*did you mean 'digits'"),
        ("no/such/folder", "neither a known data set nor a path"),
        ("", "neither"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises(DataError, match=message):
        load(source)


def test_unknown_file_type(tmp_path):
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(DataError, match="cannot be read as data"):
        load(tmp_path / "a.doc")


def test_real_utkface(real):
    data = load(real("utkface48.zip"), Options(max_rows=500))
    assert data.skipped == {"file name is not age_gender_race_date.jpg": 3}
    assert data.inputs.shape == (500, 48, 48, 3)
    assert len(data.groups) == 10


def test_real_celeba(real):
    data = load(real("celeba48.zip"), Options(max_rows=300))
    assert data.groups == ("not Male", "Male")
    assert data.skipped == {}
