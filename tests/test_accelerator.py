"""The command that asks an accelerator everything: limits, what is written, going on."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys

import pytest

from experiments import accelerator
from experiments.accelerator import Stage
from fairbilevel.cli._parse import configuration

SAYS = ("timeit", "-n", "1", "-r", "1", "print('a word')")
FAILS = ("timeit", "-n", "1", "no such name")
SLEEPS = ("timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)")


def asked(monkeypatch, tmp_path, *stages, words=()):
    monkeypatch.setattr(accelerator, "stages", lambda dry, out, data: list(stages))
    monkeypatch.setattr(sys, "argv", ["accelerator", "--out", str(tmp_path), *words])
    with contextlib.suppress(SystemExit):  # of stages that were not begun
        accelerator.main()
    return json.loads((tmp_path / "stages.json").read_text())["stages"]


def test_stages_fail_and_are_cut_one_by_one(monkeypatch, tmp_path, capsys):
    stages = [
        Stage("first", "whether it fails", FAILS, 60),
        Stage("second", "whether it ends", SLEEPS, 2),
        Stage("third", "what it says", SAYS, 60),
    ]
    found = asked(monkeypatch, tmp_path, *stages)
    assert found["first"]["ended"] == "failed (exit code 1)"
    assert found["second"]["ended"] == "cut at 2 s"
    assert found["third"]["ended"] == "done"
    assert "a word" in (tmp_path / "third.log").read_text()
    table = (tmp_path / "stages.md").read_text()
    assert "| second | whether it ends | cut at 2 s |" in table
    assert "a word" in capsys.readouterr().out
    # A second call takes those that did not end well.
    (tmp_path / "third.log").unlink()
    found = asked(monkeypatch, tmp_path, Stage("first", "whether it fails", SAYS, 60), *stages[2:])
    assert found["first"]["ended"] == "done"
    assert not (tmp_path / "third.log").exists()


def test_the_time_of_all_of_them_is_kept(monkeypatch, tmp_path):
    stages = [Stage("first", "a", SLEEPS, 60), Stage("second", "b", SAYS, 60)]
    found = asked(monkeypatch, tmp_path, *stages, words=["--seconds", "6"])
    assert found["first"]["ended"] == "cut at 6 s"
    assert "second" not in found
    assert "| second | b | not begun |" in (tmp_path / "stages.md").read_text()


def test_numbers_of_two_machines_do_not_mix(monkeypatch, tmp_path):
    asked(monkeypatch, tmp_path, Stage("first", "a", SAYS, 60))
    record = json.loads((tmp_path / "stages.json").read_text())
    record["machine"] = {"device": "another"}
    (tmp_path / "stages.json").write_text(json.dumps(record))
    monkeypatch.setattr(sys, "argv", ["accelerator", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="another machine"):
        accelerator.main()


@pytest.mark.parametrize("dry", [True, False])
def test_every_stage_is_one_that_its_module_takes(dry, tmp_path):
    found = accelerator.stages(dry, tmp_path)
    names = [s.name for s in found]
    assert {"bilinear-resnet18-bfloat16", "memory", "feeding", "demo", "core"} <= set(names)
    assert len(set(names)) == len(names)
    for stage in found:
        module, *words = stage.words
        if module == "fairbilevel":
            assert configuration("solve", words[1:]).out == str(tmp_path / "demo")
        elif module != "pytest":  # unknown or bad options end the parser's process
            options = importlib.import_module(module).parser().parse_args(words)
            assert options.out == tmp_path
    for name in accelerator.CORE:
        assert (accelerator.ROOT / "tests" / f"{name}.py").is_file()
