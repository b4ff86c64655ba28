"""Separated text as it comes out of spreadsheets: read rightly, or refused with its line."""

from __future__ import annotations

import codecs

import numpy as np
import pandas as pd
import pytest

from fairbilevel.data import DataError, Encoder, Options, load, read_table

ASKED = Options(target="y", group=("g",))
PLAIN = "x,y,g\n1.5,no,a\n2.5,yes,b\n0.25,no,b\n"


def written(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


SAME = {
    "commas": PLAIN,
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "semicolons and decimal commas": PLAIN.replace(",", ";").replace(".", ","),
    "tabs and decimal commas": PLAIN.replace(",", "\t").replace(".", ","),
    "all quoted": "".join(f'"{line}"\n' for line in PLAIN.replace(",", '","').splitlines()),
    "lines of Windows": PLAIN.replace("\n", "\r\n"),
    "lines of old Macs": PLAIN.replace("\n", "\r"),
    "blank lines": "\n" + PLAIN.replace("\n", "\n\n"),
    "spaces after commas": PLAIN.replace(",", ", "),
    "no last line end": PLAIN.rstrip(),
    "a byte order mark": codecs.BOM_UTF8 + PLAIN.encode(),
    "UTF-16, little end": codecs.BOM_UTF16_LE + PLAIN.encode("utf-16-le"),
    "UTF-16, big end": codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"),
    "UTF-16, semicolons": PLAIN.replace(",", ";").encode("utf-16"),
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_is_the_same_table(form, tmp_path):
    data = load(written(tmp_path, SAME[form]), ASKED)
    assert data.inputs["x"].tolist() == [1.5, 2.5, 0.25]
    assert data.classes == ("no", "yes")
    assert data.groups == ("a", "b")
    assert data.y.tolist() == [0, 1, 0]
    said = any("Decimal commas were read in x" in note for note in data.notes)
    assert said == ("decimal" in form)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "tab", "TSV"])
def test_the_content_and_not_the_suffix_says_the_separator(suffix, tmp_path):
    for separator in ",;\t":
        path = written(tmp_path, PLAIN.replace(",", separator), f"t.{suffix}")
        assert load(path, ASKED).inputs["x"].tolist() == [1.5, 2.5, 0.25]


def test_separators_within_quotes_are_text(tmp_path):
    text = 'x;y;g\n"1,5";"no; never";a\n"2,5";"yes, ever";b\n'
    data = load(written(tmp_path, text), ASKED)
    assert data.classes == ("no; never", "yes, ever")
    assert data.inputs["x"].tolist() == [1.5, 2.5]
    text = 'x,y,g\n1,"no; never",a\n2,"yes; ever",b\n'
    assert load(written(tmp_path, text), ASKED).classes == ("no; never", "yes; ever")
    text = 'x,y,g\n1,"no\tnever",a\n2,"yes\tever",b\n'
    assert load(written(tmp_path, text), ASKED).classes == ("no\tnever", "yes\tever")


def test_decimal_commas_are_no_codes(tmp_path):
    """In a file that commas separate, "1,2" is a text that somebody chose."""
    text = 'x,y,g\n"1,2",no,a\n"2,3",yes,b\n'
    data = load(written(tmp_path, text), ASKED)
    assert data.inputs["x"].tolist() == ["1,2", "2,3"]
    text = "x;z;y;g\n1,2;3;no;a\n;4,5e3;yes;b\n-7;n/a;no;b\n"
    data = load(written(tmp_path, text), ASKED)
    np.testing.assert_array_equal(data.inputs["x"], [1.2, np.nan, -7])
    assert data.inputs["z"].tolist() == ["3", "4,5e3", "n/a"]  # not all of it is numbers


REFUSED = {
    "thousands": ("x;y;g\n1,234;no;a\n5,678;yes;b\n", "holds '1,234', which can be read as more"),
    "thousands and decimals": ("x;y;g\n1.234,5;no;a\n2,5;yes;b\n", "'x' of t.csv holds '1.234,5'"),
    "points and commas": ("x\ty\tg\n1.5\tno\ta\n2,5\tyes\tb\n", "holds '1.5', which can be read"),
    "two separators": ("x;z,y;g\n1;2,3;a\n3;4,4;b\n", "separated by commas and semicolons"),
    "a field too many": (PLAIN + "1,2,3,4\n", "4 fields in line 5 where its header has 3"),
    "a field too few": (PLAIN.replace("2.5,yes,b", "2.5,yes"), "2 fields in line 3"),
    "a comma at every end": (
        PLAIN.replace("a\n", "a,\n").replace("b\n", "b,\n"),
        "4 fields in line",
    ),
    "ragged after a quoted line end": (
        'x,y,g\n"a\nb",no,a\n"c",yes,b\n1,2\n',
        "2 fields in line 5",
    ),
    "no header": ("\n\n", "t.csv is empty"),
    "only separators": (",,\n1,2,3\n", "t.csv is empty"),
    "a column without a name": (",x,y,g\n0,1,no,a\n1,2,yes,b\n", "no name for its column 1"),
    "columns that differ by a space": ("x,x ,y,g\n1,2,no,a\n", "column 'x' twice"),
    "an open quote": (PLAIN + '1,"no,a\n2,yes,b\n', "line 5 .*, where a quote may be opened"),
    "an open quote in the last field": (PLAIN + '1,no,"a\n2,yes,b\n', "mend line 5, where a quote"),
    "an open quote, to the limit": (
        PLAIN + '"' + "a,\n" * 80_000,
        "mend line 5, where a quote",
    ),
    "a zero byte": (PLAIN + "1,n\0,a\n", "zero byte in line 5"),
    "another encoding": (
        PLAIN.encode() + "3,Bücher,a\n".encode("latin-1"),
        r"line 5 holds the byte 0xfc \(number 39\); save it as UTF-8",
    ),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), "zero byte in line 1"),
    "UTF-16, half a letter": (PLAIN.encode("utf-16")[:-1], "is not UTF-16 text: line 4"),
    "UTF-32": (codecs.BOM_UTF32_LE + PLAIN.encode("utf-32-le"), "zero byte in line 1"),
    "a picture": (
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        "is not UTF-8 text: line 1 holds the byte 0x89",
    ),
    "an infinite number": (PLAIN + "-inf,no,a\n", r"infinity in 1 rows \(the first is line 5\)"),
    "a number beyond any model": (PLAIN + "-1.2e46,no,a\n", r"holds -1.2e\+46, more than.*line 5"),
    "a missing target": (PLAIN + "1,?,a\n", "missing in 1 rows.*line 5"),
    "a blank target": (PLAIN + '1," ",a\n', "missing in 1 rows.*line 5"),
    "a missing target after a quoted line end": (
        'x,y,g\n"a\nb",no,a\n\n"c",,b\n',
        "missing in 1 rows.*line 5",
    ),
    "a target that is all missing": ("x,y,g\n1,,a\n2,,b\n", "missing in 2 rows.*line 2"),
    "one class": ("x,y,g\n1,no,a\n2,no,b\n", "single class"),
    "one group": ("x,y,g\n1,no,a\n2,yes,a\n", "single group"),
    "one row": ("x,y,g\n1,no,a\n", "single group"),
    "a header alone": ("x,y,g\n", "no rows"),
    "nothing": ("", "is empty"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_meant_is_refused_in_a_sentence(what, tmp_path):
    content, message = REFUSED[what]
    with pytest.raises(DataError, match=message) as caught:
        load(written(tmp_path, content), ASKED)
    assert "\n" not in str(caught.value)


def test_rows_know_their_lines(tmp_path):
    read = read_table(written(tmp_path, '\nx,y\n1,"a\n\nb"\n\n2,c\r\n3,d'))
    assert read.lines.tolist() == [3, 7, 8]
    assert read.table["y"].tolist() == ["a\n\nb", "c", "d"]


def test_labels_outside_the_run_are_told_by_line(tmp_path):
    path = written(tmp_path, PLAIN + "1,maybe,a\n")
    with pytest.raises(DataError, match="line 5 has the label 'maybe', which is outside no, yes"):
        load(path, ASKED, classes=("no", "yes"), groups=("a", "b"))


def test_a_column_without_values_is_read(tmp_path):
    data = load(written(tmp_path, "x,z,y,g\n1,,no,a\n2,?,yes,b\n"), ASKED)
    assert data.inputs["z"].isna().all()


def test_numbers_far_from_those_of_fit_are_refused(tmp_path):
    data = load(written(tmp_path, PLAIN), ASKED)
    encoder = Encoder.fit(data, np.arange(3))
    new = data.inputs.assign(x=[1.0, 2.0, 3.0e38])
    assert np.isfinite(encoder.transform(new)).all()
    with pytest.raises(DataError, match="'x' holds numbers too far from those that the run was"):
        encoder.transform(new.assign(x=1e60))


def test_parquet_with_a_column_twice_or_damaged(tmp_path):
    pd.DataFrame({"x": [1], "x ": [2], "y": [1], "g": [1]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'x' twice"):
        load(tmp_path / "t.parquet", ASKED)
    raw = (tmp_path / "t.parquet").read_bytes()
    for cut in range(4, len(raw), 97):
        (tmp_path / "t.parquet").write_bytes(raw[:cut] + raw[cut + 5 :])
        with pytest.raises(DataError):
            load(tmp_path / "t.parquet", ASKED)
