"""What experiments write: tables, CSV, the command that made them."""

from __future__ import annotations

import subprocess

import pytest

from experiments import _write

ROOT = _write.RESULTS.parents[1]


def test_rows_go_through_csv_and_markdown(tmp_path):
    rows = [{"a": 0.1 + 0.2, "b": "x, y"}, {"b": 2, "c": None}]
    _write.write_csv(tmp_path / "new" / "rows.csv", rows)
    back = _write.read_csv(tmp_path / "new" / "rows.csv")
    assert back == [{"a": repr(0.1 + 0.2), "b": "x, y", "c": ""}, {"a": "", "b": "2", "c": ""}]
    _write.write_csv(tmp_path / "rows.csv", rows, digits=3)
    assert _write.read_csv(tmp_path / "rows.csv")[0]["a"] == "0.3"
    assert _write.read_csv(tmp_path / "none.csv") == []
    table = "| a | b |\n|---|---|\n| 1 |  |\n|  | 2 |"
    assert _write.table([{"a": 1}, {"b": 2}]) == table
    assert _write.page("# Title", "", _write.table([]), table) == f"# Title\n\n{table}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rows", "5"], "--rows 5"),
        (["--out", "/somewhere/else", "--data", "/private/faces"], "--data faces"),
        (["--out=/somewhere", "--data=/private/faces", "--", "a b"], "--data=faces -- 'a b'"),
        (["--data", "../faces"], "--data faces"),
    ],
)
def test_the_command_says_nothing_of_this_machine(words, told, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/a/checkout/experiments/bench_x.py", *words])
    assert _write.command() == f"python -m experiments.bench_x {told}"
    assert _write.made_by().startswith(f"Made by `python -m experiments.bench_x {told}` with ")


def test_an_option_has_the_type_of_its_default():
    given = _write.parser("Words.\n\nMore.", None, batch_size=3, width=int, again=False, rate=0.5)
    options = given.parse_args(["--batch-size", "4", "--again"])
    assert (options.batch_size, options.width, options.again, options.rate) == (4, None, True, 0.5)
    assert given.description == "Words."


def test_what_is_tracked_of_results_is_small():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "experiments/results"], cwd=ROOT, capture_output=True, text=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    if not files:
        pytest.skip("no checkout")
    assert len(files) <= 150
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 8_000_000
