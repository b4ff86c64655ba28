"""TensorFlow Datasets without TensorFlow: mocked by TFDS itself, and prepared on disk."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from fairbilevel.data import DataError, Encoder, Options, load, split_roles

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.mark.parametrize(
    ("name", "options", "classes", "groups"),
    [
        ("cifar10", Options(), 10, 10),
        ("svhn_cropped", Options(), 10, 10),
        ("cifar100", Options(group=("coarse_label",)), 100, 20),
        ("celeb_a", Options(image_size=16), 2, 2),
        ("celeb_a", Options(target="Smiling", group=("Male", "Young"), image_size=16), 2, 4),
    ],
)
def test_mocked(name, options, classes, groups):
    with tfds.testing.mock_data(num_examples=30):
        data = load(name, options)
    assert len(data) == 30
    assert data.inputs.dtype == np.uint8
    assert data.inputs.shape[1:] == ((16, 16, 3) if options.image_size else (32, 32, 3))
    assert 2 <= len(data.classes) <= classes
    assert 2 <= len(data.groups) <= groups
    assert (data.y >= 0).all()
    assert data.ids[0] == "train:0"
    if name == "celeb_a" and not options.group:
        assert data.classes == ("not Blond_Hair", "Blond_Hair")
        assert data.groups == ("not Male", "Male")
    assert "tensorflow" not in sys.modules


class FairbilevelTiny(tfds.core.GeneratorBasedBuilder):
    """Eight by eight images, already encoded, with a label, a sex and a person."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(8, 8, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "about": {"sex": tfds.features.ClassLabel(names=["f", "m"]), "old": np.bool_},
            "person": np.int64,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(40),
            "unlabelled": self._generate_examples(5, True),
        }

    def _generate_examples(self, n, bare=False):
        for i in range(n):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), 5 * i, np.uint8)).save(file, "PNG")
            file.seek(0)
            about = {"sex": i // 2 % 2, "old": i % 3 == 0}
            yield (
                i,
                {"image": file, "label": -1 if bare else i % 2, "about": about, "person": i // 4},
            )


@pytest.fixture(scope="module", params=["array_record", "parquet"])
def prepared(request, tmp_path_factory):
    if request.param == "array_record":
        pytest.importorskip("array_record")
    path = tmp_path_factory.mktemp(request.param)
    FairbilevelTiny(data_dir=path, file_format=request.param).download_and_prepare()
    return str(path)


def test_prepared_on_disk(prepared):
    options = Options(data_dir=prepared, group=("sex",), unit="person")
    data = load("tfds:fairbilevel_tiny", options)
    assert data.classes == ("cat", "dog")
    assert data.groups == ("f", "m")
    # The grey level of a row tells which one it is, whatever the order on disk.
    i = data.inputs[:, 0, 0, 0] // 5
    assert sorted(i) == list(range(40))
    assert (data.y == i % 2).all()
    assert (data.group == i // 2 % 2).all()
    assert (data.unit == (i // 4).astype(str)).all()
    roles = split_roles(data)
    assert Encoder.fit(data, roles["fit"]).input_shape == (8, 8, 3)
    old = load(f"tfds:fairbilevel_tiny?data_dir={prepared}", Options(target="old", image_size=4))
    assert old.classes == ("not old", "old")
    assert old.inputs.shape == (40, 4, 4, 3)
    few = load("tfds:fairbilevel_tiny", Options(data_dir=prepared, max_rows=10))
    assert len(few) == 10
    assert "A random subset of 10 of 40 rows." in few.notes
    assert "tensorflow" not in sys.modules


def test_labels_of_minus_one_are_missing(prepared):
    options = Options(data_dir=prepared, split="unlabelled", group=("sex",))
    with pytest.raises(DataError, match="target 'label' is missing in 5 rows"):
        load("tfds:fairbilevel_tiny", options)
    names = dict(classes=("cat", "dog"), groups=("f", "m"))
    assert (load("tfds:fairbilevel_tiny", options, **names, labelled=False).y == -1).all()


def test_mistakes(prepared, tmp_path):
    with pytest.raises(DataError, match=r"no split 'trian'.*train"):
        load("tfds:fairbilevel_tiny", Options(data_dir=prepared, split="trian"))
    with pytest.raises(DataError, match="did you mean 'label'"):
        load("tfds:fairbilevel_tiny", Options(data_dir=prepared, target="lable"))
    with pytest.raises(DataError, match=r"has no 'cifar11'.*did you mean 'cifar10"):
        load("tfds:cifar11", Options(data_dir=str(tmp_path)))
    with pytest.raises(DataError, match=r"'datadir'.*did you mean 'data_dir'"):
        load("tfds:cifar10?datadir=x")
    for name in ("cifar10", "mnist"):
        with pytest.raises(DataError, match=f"tfds:{name} is not prepared here.*tfds build {name}"):
            load(name, Options(data_dir=str(tmp_path)))
