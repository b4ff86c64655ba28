"""Tables: missing values, groups, weights, roles, and encoders that know only fit."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest

from fairbilevel.data import (
    DataError,
    Encoder,
    Options,
    handle_small_groups,
    load,
    split_roles,
)
from fairbilevel.data._attributes import as_text, parse_bins

CSV = """age, job,score,sex,race,income,w,person,part,key
25,clerk,1.5,M,White,>50K,1,p1,fit,r1
?,cook,2.5,F,Black,<=50K,2,p2,test,r2
40,?,,M,White,<=50K,1,p1,fit,r3
61,clerk,0.5,F,White,>50K,0,p3,select,r4
33,smith,9.5,M,Black,<=50K,1,p4,fit,r5
"""


def write(tmp_path, text=CSV, name="t.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


BASE = Options(target="income", group=("race", "sex"), positive=">50K")


def with_options(**changes):
    values = BASE.to_json() | changes
    return Options.from_json(values)


def test_table(tmp_path):
    path = write(tmp_path)
    options = with_options(weight="w", unit="person", role="part", id="key")
    data = load(path, options)
    assert list(data.inputs.columns) == ["age", "job", "score", "sex", "race"]
    assert data.classes == ("not >50K", ">50K")
    assert data.y.tolist() == [1, 0, 0, 1, 0]
    assert data.groups == ("Black x F", "Black x M", "White x F", "White x M")
    assert data.ids.tolist() == ["r1", "r2", "r3", "r4", "r5"]
    assert data.weight.dtype == np.float32
    assert data.weight.tolist() == [1, 2, 1, 0, 1]
    assert data.unit.tolist() == ["p1", "p2", "p1", "p3", "p4"]
    assert data.role.tolist() == ["fit", "test", "fit", "select", "fit"]
    assert data.inputs["age"].isna().tolist() == [False, True, False, False, False]


def test_the_output_says_whether_the_group_is_a_model_input(tmp_path):
    path = write(tmp_path)
    both = load(path, BASE).notes
    assert any(n.startswith("Group attributes race and sex are model inputs") for n in both)
    one = load(path, with_options(exclude_feature=["race"]))
    assert "race" not in one.inputs.columns
    assert any("sex is a model input" in n and "race is no model input" in n for n in one.notes)
    same = load(path, Options(target="income", group=("income",)))
    assert same.groups == same.classes == ("<=50K", ">50K")
    assert any("groups are the classes" in n for n in same.notes)


def test_parquet_reads_like_csv(tmp_path):
    frame = pd.read_csv(io.StringIO(CSV), skipinitialspace=True, dtype={"job": object})
    frame["age"] = pd.to_numeric(frame["age"], errors="coerce")
    frame.to_parquet(tmp_path / "t.parquet")
    a, b = load(write(tmp_path), BASE), load(tmp_path / "t.parquet", BASE)
    assert (a.y == b.y).all()
    assert a.groups == b.groups
    x = [Encoder.fit(d, np.arange(5)).transform(d.inputs) for d in (a, b)]
    np.testing.assert_array_equal(*x)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load(tmp_path / "bad.parquet", BASE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(target=None), "column to predict.*age, job"),
        (dict(group=[]), "make the groups"),
        (dict(target="incom"), "target is 'incom'.*did you mean 'income'"),
        (dict(group=["rase"]), "group is 'rase'.*did you mean 'race'"),
        (dict(positive=">50k"), "positive is '>50k'.*did you mean '>50K'"),
        (dict(exclude_feature=["jb"]), "exclude_feature names 'jb'.*did you mean 'job'"),
        (dict(weight="ww"), "weight is 'ww'"),
        (dict(weight="job"), "does not hold numbers"),
        (dict(unit="nobody"), "unit is 'nobody'"),
        (dict(unit="job"), "unit column 'job' is empty in 1 rows"),
        (dict(id="person"), "id 'p1' occurs more than once"),
        (dict(id="job"), "id column 'job' is empty in 1 rows"),
        (dict(role="sex"), "holds 'm' in 5 rows"),
        (dict(weight="score"), "1 rows are missing"),
        (dict(target="job", positive=None), "target 'job' is missing in 1 rows.*line 4"),
        (dict(group=["job"]), "'job' is missing in 1 rows.*missing_groups"),
        (dict(bins=["score=1"]), "neither target nor group"),
        (dict(group=["sex"], bins=["sex=1"]), "does not hold numbers"),
    ],
)
def test_bad_tables_and_options(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path), with_options(**changes))
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("a,b\n", "no rows"),
        ("a,a\n1,2\n", "column 'a' twice"),
        (CSV + "1,2,3,4,5,6,7,8,9,10,11\n", "11 fields in line 7 where its header has 10"),
        (CSV.replace(">50K", ""), "positive is|target 'income' is missing in 2 rows"),
        ("income,race,sex\n>50K,a,b\n<=50K,c,d\n", None),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = write(tmp_path, text)
    if message is None:
        load(path, BASE)
    else:
        with pytest.raises(DataError, match=message):
            load(path, BASE)


def test_other_unusable_files(tmp_path):
    (tmp_path / "t.csv").write_bytes("income,ü\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load(tmp_path / "t.csv", BASE)
    rows = "".join(f"name{i},{i % 2},{i % 3}\n" for i in range(1100))
    path = write(tmp_path, "who,y,g\n" + rows)
    with pytest.raises(DataError, match=r"'who' .*1100 different texts.*exclude it"):
        load(path, Options(target="y", group=("g",)))
    path = write(tmp_path, "x,y,g\n1,0,a\ninf,1,b\n")
    with pytest.raises(DataError, match="infinity"):
        load(path, Options(target="y", group=("g",)))
    path = write(tmp_path, "y,g\n1,a\n2,b\n")
    with pytest.raises(DataError, match="no column left"):
        load(path, Options(target="y", group=("g",), exclude_feature=("g",)))
    with pytest.raises(DataError, match="single class"):
        load(write(tmp_path, "x,y,g\n1,1,a\n2,1,b\n"), Options(target="y", group=("g",)))
    with pytest.raises(DataError, match="single group"):
        load(write(tmp_path, "x,y,g\n1,1,a\n2,2,a\n"), Options(target="y", group=("g",)))


def test_missing_groups(tmp_path):
    path = write(tmp_path)
    own = load(path, with_options(group=["job"], missing_groups="own"))
    assert own.groups == ("clerk", "cook", "smith", "missing")
    assert own.groups[own.group[2]] == "missing"
    crossed = load(path, with_options(group=["race", "job"], missing_groups="own"))
    assert crossed.groups[crossed.group[2]] == "White x missing"
    dropped = load(path, with_options(group=["job"], missing_groups="drop"))
    assert len(dropped) == 4
    assert dropped.ids.tolist() == ["0", "1", "3", "4"]
    assert dropped.skipped == {"group is missing": 1}
    with pytest.raises(DataError, match=r"missing_groups is 'drp'.*did you mean 'drop'"):
        with_options(missing_groups="drp")


def test_numeric_groups_need_bins(tmp_path):
    rng = np.random.default_rng(0)
    rows = "".join(f"{a},{i % 2}\n" for i, a in enumerate(rng.uniform(18, 90, 200)))
    path = write(tmp_path, "age,y\n" + rows)
    with pytest.raises(DataError, match=r"'age' holds 200 different numbers.*bins"):
        load(path, Options(target="y", group=("age",)))
    data = load(path, Options(target="y", group=("age",), bins=("age=25,45.5",)))
    assert data.groups == ("age<25", "25<=age<45.5", "age>=45.5")
    age = data.inputs["age"].to_numpy()
    assert (data.group == np.digitize(age, [25, 45.5])).all()
    other = load(path, Options(target="age", group=("y",), bins=("age=40",)))
    assert other.classes == ("age<40", "age>=40")
    assert list(other.inputs.columns) == ["y"]


@pytest.mark.parametrize("bins", ["age", "age=", "=3", "age=3,2", "age=3,3", "age=a", "age=inf"])
def test_bad_bins(bins):
    with pytest.raises(DataError, match="growing edges"):
        parse_bins([bins])


def test_rows_to_predict_need_no_labels(tmp_path):
    data = load(write(tmp_path), BASE)
    text = "\n".join(",".join(line.split(",")[:4]) for line in CSV.splitlines())
    names = dict(classes=data.classes, groups=data.groups)
    new = load(write(tmp_path, text), with_options(weight="w"), **names, labelled=False)
    assert new.y.tolist() == new.group.tolist() == [-1] * 5
    assert new.classes == data.classes
    partly = load(write(tmp_path, CSV.replace(">50K", "")), BASE, **names, labelled=False)
    assert partly.y.tolist() == [-1, 0, 0, -1, 0]
    assert (partly.group == data.group).all()
    with pytest.raises(DataError, match="group 'Green x M', which is outside"):
        load(write(tmp_path, CSV.replace("White", "Green")), BASE, **names, labelled=False)


def test_labels_outside_the_classes_of_a_former_run(tmp_path):
    options = Options(target="job", group=("sex",))
    text = CSV.replace("40,?", "40,cook")
    path = write(tmp_path, text)
    data = load(path, options)
    assert data.classes == ("clerk", "cook", "smith")
    with pytest.raises(
        DataError, match="line 6 has the label 'smith', which is outside clerk, cook"
    ):
        load(path, options, classes=("clerk", "cook"), groups=data.groups)
    again = load(path, options, classes=("smith", "cook", "clerk"), groups=data.groups)
    assert [again.classes[i] for i in again.y] == [data.classes[i] for i in data.y]


def test_text_of_values():
    assert as_text(pd.Series([1.0, 2.5, None])).tolist() == ["1", "2.5", None]
    assert as_text(pd.Series([1, 2])).tolist() == ["1", "2"]
    assert as_text(pd.Series([True, False])).tolist() == ["True", "False"]
    assert as_text(pd.Series([" a", None], dtype=object)).tolist() == ["a", None]
    assert as_text(pd.Series(["a", "b"], dtype="category")).tolist() == ["a", "b"]


def test_options_round_trip():
    options = with_options(bins=["age=3"], max_rows=5)
    assert Options.from_json(json.loads(json.dumps(options.to_json()))) == options
    assert Options(group="race").group == ("race",)
    with pytest.raises(DataError, match="did you mean 'target'"):
        Options.from_json({"taget": "x"})
    for bad in (dict(image_size=0), dict(max_rows=-1), dict(group=("a", "a"))):
        with pytest.raises(DataError):
            Options(**bad)


def test_fingerprint_sees_every_part(tmp_path):
    base = load(write(tmp_path), BASE)
    assert base.fingerprint == load(write(tmp_path), BASE).fingerprint
    prints = {base.fingerprint}
    for text in (
        CSV.replace("61,", "62,"),
        CSV.replace("smith", "smyth"),
        CSV.replace("F,White", "F,Black"),
        CSV.replace("9.5,M,Black,<=50K", "9.5,M,Black,>50K"),
        CSV.replace("score", "points"),
    ):
        prints.add(load(write(tmp_path, text), BASE).fingerprint)
    prints.add(load(write(tmp_path), with_options(id="key")).fingerprint)
    assert len(prints) == 7
    assert base.take(np.arange(5)).fingerprint == base.fingerprint
    assert base.take(np.array([2, 0])).ids.tolist() == ["2", "0"]


def test_real_adult(real):
    data = load(real("adult.csv"), BASE)
    assert len(data) == 38894
    assert data.classes == ("not >50K", ">50K")
    assert len(data.groups) == 10
    roles = split_roles(data)
    encoder = Encoder.fit(data, roles["fit"])
    encoded = encoder.transform(data.inputs)
    assert "workclass=(missing)" in encoder.feature_names
    assert np.abs(encoded[roles["fit"]].mean(axis=0)[0]) < 1e-4


def test_real_compas(real):
    data = load(real("compas.csv"), Options(target="two_year_recid", group=("race", "sex")))
    sizes = dict(zip(data.groups, np.bincount(data.group), strict=True))
    assert sizes["Native American x Female"] == 1
    assert sizes["Asian x Female"] == 2
    assert any("inputs identical to another row's" in n for n in data.notes)
    with pytest.raises(DataError, match="in role"):
        split_roles(data)
    pooled, counted = handle_small_groups(data, "merge", 30)
    assert pooled.groups[-1] == "other (merged)"
    split_roles(pooled, counted=counted)
    shown, counted = handle_small_groups(data, "report-only", 30)
    assert (~counted).sum() == 4
    split_roles(shown, counted=counted)
