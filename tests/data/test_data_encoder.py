"""Encoders: fitted on fit only, saved as JSON, strict about what they read back."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairbilevel.data import DataError, Dataset, Encoder, from_arrays


def random_table(seed, n=60):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "a": np.where(rng.random(n) < 0.2, np.nan, rng.normal(3, 5, n)),
            "b": rng.integers(0, 4, n),
            "c": rng.choice(["x", "y", "z"], n).astype(object),
            "constant": 7.0,
            "hollow": np.nan,
        }
    )
    frame.loc[rng.random(n) < 0.2, "c"] = None
    return frame


def as_data(frame):
    n = len(frame)
    names = ("0", "1")
    return Dataset(
        "t", frame, np.arange(n) % 2, np.arange(n) % 2, np.arange(n).astype(str), names, names
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_encoder_knows_fit_only(seed):
    frame = random_table(seed)
    fit = np.sort(np.random.default_rng(seed + 1).choice(60, 30, replace=False))
    frame.loc[fit[0], "a"] = np.nan  # one draw in a thousand has none
    encoder = Encoder.fit(as_data(frame), fit)
    changed = frame.copy()
    rest = np.setdiff1d(np.arange(60), fit)
    changed.loc[rest, "a"] = 1e6
    changed.loc[rest, "c"] = "new"
    assert Encoder.fit(as_data(changed), fit) == encoder
    assert encoder.unseen(changed) == {"c": 30}
    encoded = encoder.transform(frame)
    assert encoded.dtype == np.float32
    assert encoded.shape == (60, *encoder.input_shape) == (60, len(encoder.feature_names))
    assert np.isfinite(encoded).all()
    # Standardized on fit, by the numbers that numpy gives for the imputed column.
    a = encoded[fit, encoder.feature_names.index("a")]
    assert abs(a.mean()) < 1e-5
    assert a.std() == pytest.approx(1, abs=1e-4)
    indicator = encoded[:, encoder.feature_names.index("a (missing)")]
    assert (indicator == frame["a"].isna()).all()
    again = Encoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again == encoder
    np.testing.assert_array_equal(again.transform(frame), encoded)


def test_the_encoder_by_hand():
    frame = pd.DataFrame({"n": [1.0, np.nan, 5.0, 9.0], "c": ["u", "v", None, "w"]})
    encoder = Encoder.fit(as_data(frame), np.array([0, 1, 2]))
    # fit: 1, (median of 1 and 5 = 3), 5: mean 3, deviation sqrt(8/3)
    assert encoder.feature_names == ("n", "n (missing)", "c=u", "c=v", "c=(missing)")
    scale = np.sqrt(8 / 3)
    want = [
        [-2 / scale, 0, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [2 / scale, 0, 0, 0, 1],
        [6 / scale, 0, 0, 0, 0],
    ]
    np.testing.assert_allclose(encoder.transform(frame), want, rtol=1e-6)
    assert encoder.unseen(frame) == {"c": 1}
    assert encoder.mean is None


def test_the_encoder_agrees_with_scikit_learn():
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler

    frame = random_table(4)[["a", "b"]]
    ours = Encoder.fit(as_data(frame), np.arange(60)).transform(frame)
    imputed = SimpleImputer(strategy="median").fit_transform(frame[["a"]])
    theirs = StandardScaler().fit_transform(np.hstack([imputed, frame[["b"]]]))
    np.testing.assert_allclose(ours[:, [0, 2]], theirs, atol=1e-5)


def test_the_encoder_refuses_other_tables():
    frame = random_table(0)
    encoder = Encoder.fit(as_data(frame), np.arange(60))
    with pytest.raises(DataError, match=r"lacks columns.*: b"):
        encoder.transform(frame.drop(columns="b"))
    with pytest.raises(DataError, match="'b' holds 'many' where a finite number"):
        encoder.transform(frame.astype({"b": object}).replace({"b": {0: "many"}}))
    with pytest.raises(DataError, match="given a ndarray"):
        encoder.transform(np.zeros((3, 5), np.float32))
    with pytest.raises(DataError, match="at least one row"):
        Encoder.fit(as_data(frame), np.array([], int))
    # Numbers that were read as text are numbers all the same, and more columns do no harm.
    text = frame.astype({"b": str}).assign(more=1)
    np.testing.assert_array_equal(encoder.transform(text), encoder.transform(frame))


def test_image_and_vector_encoders():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 5, 5, 3), dtype=np.uint8)
    images[..., 2] = 9
    fit = np.arange(0, 40, 2)
    data = from_arrays(images, np.arange(40) % 2, np.arange(40) % 2)
    encoder = Encoder.fit(data, fit)
    scaled = images[fit] / 255
    np.testing.assert_allclose(encoder.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(encoder.std[:2], scaled.std(axis=(0, 1, 2))[:2], rtol=1e-12)
    assert encoder.std[2] == 1
    assert encoder.transform(images) is images
    assert encoder.input_shape == (5, 5, 3)
    vectors = np.concatenate([rng.normal(2, 3, (40, 4)), np.ones((40, 1))], axis=1)
    data = from_arrays(vectors, np.arange(40) % 2, np.arange(40) % 2)
    vector = Encoder.fit(data, fit)
    assert vector.kind == "vector"
    np.testing.assert_allclose(vector.mean, data.inputs[fit].mean(axis=0), rtol=1e-5)
    assert vector.std[-1] == 1
    assert vector.feature_names == ("x0", "x1", "x2", "x3", "x4")
    for e in (encoder, vector):
        assert Encoder.from_json(json.loads(json.dumps(e.to_json()))) == e
    with pytest.raises(DataError, match="fitted on"):
        encoder.transform(images[:, :4])
    with pytest.raises(DataError, match="of type uint8"):
        encoder.transform(vectors)


def mutations():
    frame = random_table(1)
    table = Encoder.fit(as_data(frame), np.arange(60)).to_json()
    image = from_arrays(np.zeros((4, 2, 2, 3), np.uint8), [0, 1, 0, 1], [0, 1, 0, 1])
    picture = Encoder.fit(image, np.arange(4)).to_json()
    yield None
    yield {}
    yield table | {"format": 2}
    yield table | {"more": 1}
    yield table | {"kind": "tabel"}
    yield table | {"input_shape": [3]}
    yield table | {"columns": "abc"}
    yield table | {"mean": [0.0]}
    yield table | {"columns": [table["columns"][0]] * 2}
    yield table | {"columns": [{**table["columns"][0], "std": 0}, *table["columns"][1:]]}
    yield table | {"columns": [{**table["columns"][0], "mean": float("nan")}]}
    yield table | {"columns": [{"type": "categorical", "name": "c", "levels": [1]}]}
    yield table | {"columns": [3]}
    yield picture | {"mean": [0.0]}
    yield picture | {"std": [1.0, 1.0, -1.0]}
    yield picture | {"std": None}
    yield picture | {"input_shape": []}
    yield picture | {"input_shape": [2, 2, "3"]}
    yield picture | {"kind": ["image"]}


@pytest.mark.parametrize("values", list(mutations()))
def test_malformed_encoders(values):
    with pytest.raises(DataError, match="saved encoder is malformed"):
        Encoder.from_json(values)
