"""``fairbilevel compare``: resumes, keeps every row, recomputes its tables from files."""

import csv
import dataclasses
import json
import os
import shutil
import time

import numpy as np
import pytest

from fairbilevel import comparison, methods, pruners, solver, train
from fairbilevel.cli import main
from fairbilevel.comparison import Comparison, start_repetition
from fairbilevel.masks import CutNetworkError
from fairbilevel.run import Config
from fairbilevel.sweeps._executors import Workers as _workers
from fairbilevel.train import DivergenceError


def design(source, **changes):
    config = Config(
        data=str(source), model="mlp", width=8, dense_steps=40, steps=40, batch_size=32, **changes
    )
    return Comparison(config, ("gradual-magnitude", "magnitude"), (0.5,), folds=2, dense_seeds=2)


@pytest.fixture(scope="module")
def done(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "comparison"
    lines = []
    summary = comparison.run_comparison(
        design(source), folder, progress=lines.append, command="fairbilevel compare"
    )
    return folder, summary, lines


def test_every_row_is_tested_once_and_kept(done, source):
    folder, summary, _ = done
    files = [np.load(folder / "repetitions" / f"0-{fold}.npz") for fold in range(2)]
    ids = np.concatenate([f["test/id"] for f in files])
    assert sorted(ids.astype(int)) == list(range(300))
    lines = {line["method"]: line for line in summary["lines"]}
    for method in ("gradual-magnitude", "magnitude"):
        right = [f[f"test/{method}@0.5"].mean() for f in files]
        assert lines[method]["test_accuracy"] == pytest.approx(np.mean(right))
        assert lines[method]["gradient_evaluations"] == 40
        assert lines[method]["achieved"] == pytest.approx(0.5, abs=0.02)
        # 6 x 8, 8 x 4 and the classifier's 4 x 2, which stays; biases multiply nothing.
        assert lines[method]["multiply_adds_kept"] == pytest.approx((40 + 8) / 88)
        assert lines[method]["parameters_kept"] == pytest.approx((40 + 8 + 14) / 102)
    assert lines["dense"]["test_accuracy"] == pytest.approx(
        np.mean([f["test/dense"].mean() for f in files])
    )
    difference = lines["magnitude"]["test_accuracy"] - lines["gradual-magnitude"]["test_accuracy"]
    assert lines["magnitude"]["accuracy_difference_mean"] == pytest.approx(difference)


def test_it_says_that_few_repetitions_claim_nothing(done):
    folder, summary, _ = done
    assert not summary["claims"]
    text = (folder / "table.md").read_text()
    assert "describes and claims nothing" in text
    assert "**" not in text
    assert "2 ordered pairs" in text


def test_tables_and_picture_hold_every_method(done):
    folder, _, _ = done
    with (folder / "table.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == [
            "dense",
            "gradual-magnitude",
            "magnitude",
        ]
    assert "magnitude</text>" in (folder / "comparison.svg").read_text()


def test_binary_rates_are_those_of_the_rows(done):
    folder, summary, _ = done
    values = []
    for fold in range(2):
        f = np.load(folder / "repetitions" / f"0-{fold}.npz")
        label, group = f["test/label"], f["test/group"]
        answer = np.where(f["test/magnitude@0.5"], label, 1 - label)
        rates = [answer[group == g].mean() for g in (0, 1)]
        values.append(max(rates) - min(rates))
    line = next(x for x in summary["lines"] if x["method"] == "magnitude")
    assert line["test_demographic_parity"] == pytest.approx(np.mean(values))


def test_files_from_before_costs_were_counted_are_read(done, source, tmp_path):
    folder = shutil.copytree(done[0], tmp_path / "old")
    for path in (folder / "repetitions").glob("*.json"):
        record = json.loads(path.read_text())
        for run in record["runs"].values():
            del run["parameters"], run["multiply_adds"]
        path.write_text(json.dumps(record))
    summary = comparison.run_comparison(design(source), folder)
    line = summary["lines"][-1]
    assert line["parameters_kept"] is line["multiply_adds_kept"] is None
    rows = [x for x in (folder / "table.md").read_text().splitlines() if x.startswith("| magn")]
    assert " | – | – | " in rows[0]


def test_it_goes_on_where_it_stopped(done, source):
    folder, summary, _ = done
    lines = []
    again = comparison.run_comparison(design(source), folder, progress=lines.append)
    assert lines == []
    assert again["lines"] == summary["lines"]
    more = Comparison(
        design(source).config, ("gradual-magnitude", "magnitude", "random"), (0.5,), folds=2
    )
    comparison.run_comparison(more, folder, progress=lines.append)
    assert len(lines) == 2
    assert all("random@0.5" in line for line in lines)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux ties a process down")
def test_processes_share_the_cores_out():
    cores = os.sched_getaffinity(0)
    with _workers(2) as pool:
        for job in [pool.submit(time.sleep, 0.1) for _ in range(2)]:
            job.result()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            taken = [os.sched_getaffinity(pid) for p in pool._pools for pid in p._processes]
            if set.union(*taken) == cores and sum(map(len, taken)) == max(len(cores), 2):
                return
            time.sleep(0.05)
    pytest.fail(f"processes on {taken} of {cores}")


def test_other_settings_are_refused_by_name(done, source):
    folder, _, _ = done
    with pytest.raises(ValueError, match=r"other settings: learning_rate \(None there, 0\.1 here"):
        comparison.run_comparison(design(source, learning_rate=0.1), folder)
    other = folder.parent / "other"
    other.mkdir()
    (other / "file").write_text("mine")
    with pytest.raises(ValueError, match="is no comparison"):
        comparison.run_comparison(design(source), other)


def test_what_no_number_depends_on_may_differ(done, source):
    """Options of place and checkpoints, and those that an older version did not know yet."""
    folder, _, _ = done
    path = folder / "comparison.json"
    stored = path.read_text()
    known = json.loads(stored)
    del known["settings"]["precision"], known["settings"]["accumulate"]
    path.write_text(json.dumps(known))
    lines = []
    comparison.run_comparison(
        design(source, devices="1", checkpoint_every=5.0), folder, progress=lines.append
    )
    assert lines == []
    with pytest.raises(ValueError, match=r"precision \('float32' there, 'bfloat16' here"):
        comparison.run_comparison(design(source, precision="bfloat16"), folder)
    path.write_text(stored)


def test_a_run_that_fails_stays_in_the_table(source, tmp_path, monkeypatch):
    class Diverged(pruners.Magnitude):
        def run(self, problem, reference, **_):
            raise DivergenceError("finetune", 7, reference.network)

    class Cut(pruners.Random):
        def run(self, problem, reference, **_):
            raise CutNetworkError("sparsity 0.5 cut the network")

    real, broken = methods.by_name, {"magnitude": Diverged, "random": Cut}

    def by_name(name, **options):
        return broken[name](**options) if name in broken else real(name, **options)

    monkeypatch.setattr(methods, "by_name", by_name)
    three = Comparison(
        design(source).config,
        ("gradual-magnitude", "magnitude", "random"),
        (0.5,),
        folds=2,
        dense_seeds=0,
    )
    summary = comparison.run_comparison(three, tmp_path / "out")
    lines = {line["method"]: line for line in summary["lines"]}
    assert [lines[m]["failed"] for m in ("gradual-magnitude", "magnitude", "random")] == [0, 2, 2]
    # The last network whose loss was finite here is the dense one; a constant answer is no better
    # than the commonest class.
    assert lines["magnitude"]["test_accuracy"] == pytest.approx(lines["dense"]["test_accuracy"])
    assert lines["random"]["test_accuracy"] < 0.7
    text = (tmp_path / "out" / "table.md").read_text()
    assert "magnitude (2 failed)" in text
    record = json.loads((tmp_path / "out" / "repetitions" / "0-0.json").read_text())
    assert "step 7" in record["runs"]["magnitude@0.5"]["diagnosis"]


def test_a_method_that_cannot_be_run_has_no_line_in_the_table(source, tmp_path):
    """Too few steps are no cut network: no constant answer stands in for it."""
    dear = "bilevel:hypergradient=cg"
    settings = dataclasses.replace(design(source).config, steps=1)
    two = Comparison(settings, ("random", dear), (0.5,), reference="random", folds=2, dense_seeds=0)
    summary = comparison.run_comparison(two, tmp_path / "out")
    assert {line["method"] for line in summary["lines"]} == {"dense", "random"}
    jobs = [f"round 0 fold {fold}: {dear}@0.5" for fold in (0, 1)]
    assert [error["job"] for error in summary["errors"]] == jobs
    assert all("do not pay for one outer step" in error["error"] for error in summary["errors"])


# ---------------------------------------------------------------- options

# Every one was accepted, written into comparison.json and without effect once.
OPTIONS = {
    "multiplier-rule": "nupi",
    "dual-step": 0.5,
    "buffer-size": 3,
    "score-step": 0.7,
    "bilevel-share": 0.2,
    "violation-every": 2,
    "fine-tune-on": "fit",
    "budget": "uniform",
    "distill": 0.25,
    "dual-unit": "row-weight",
    "weights-on": "fit",
}
# Methods without a mask search take those that all methods share.
SHARED = ("multiplier-rule", "dual-step", "buffer-size", "budget", "distill", "dual-unit")


@pytest.mark.parametrize(("option", "value"), OPTIONS.items())
def test_options_reach_the_methods(option, value, source, tmp_path, monkeypatch):
    """From the command line to every method that takes them."""
    seen = []

    def stop(design, folder, **_):
        seen.append(design)
        return {"lines": [], "claims": False, "repetitions": 0, "reference": ""}

    monkeypatch.setattr(comparison, "run_comparison", stop)
    words = ["--data", str(source), "--methods", "gradual-magnitude,bilevel,ceag,bifp"]
    words += [f"--{option}", str(value), "--out", str(tmp_path / "out")]
    assert main(["compare", *words]) == 0
    (design,) = seen
    name = option.replace("-", "_")
    assert design.settings()[name] == value
    takes = {"bilevel", "bifp"} | ({"gradual-magnitude", "ceag"} if option in SHARED else set())
    for method in design.methods:
        built = design.method(method, 0.5, 0)
        assert (getattr(built, name, None) == value) == (method in takes)
    assert getattr(methods.by_name("bilevel"), name) != value


@pytest.fixture(scope="module")
def fold(source):
    """The first fold's problem under a tolerance that is not reached, its dense model, and a run of
    the solver as it is without options."""
    strict = held(source)
    problem, reference, _ = start_repetition(strict, 0, 0)
    return problem, reference, bits(strict, problem, reference)


def held(source, *, tolerance="0%", sparsities=(0.5,), seed=0, **options):
    config = Config(
        data=str(source), model="mlp", width=8, dense_steps=40, steps=60, batch_size=32, seed=seed,
        constraint=(f"excess-accuracy-gap={tolerance}",), **options,
    )  # fmt: skip
    return Comparison(config, ("bilevel", "ceag", "snip"), sparsities, reference="snip", folds=2)


def bits(design, problem, reference):
    solution = design.method("bilevel", 0.5, 0).run(problem, reference)
    kept = {n: np.asarray(m).tobytes() for n, m in solution.masks.items()}
    return kept, problem.logits(solution.network, problem.inputs[:50]).tobytes()


@pytest.mark.parametrize(("option", "value"), OPTIONS.items())
def test_options_change_what_runs(option, value, source, fold):
    problem, reference, without = fold
    changed = held(source, **{option.replace("-", "_"): value})
    assert bits(changed, problem, reference) != without


def test_an_option_that_no_method_takes_is_refused_by_name(source):
    with pytest.raises(ValueError, match="--score-step is no option of"):
        design(source, score_step=0.3)
    with pytest.raises(ValueError, match="--violation-every is no option of"):
        design(source, violation_every=2)


def test_layerwise_methods_keep_their_own_budget(source):
    """FPGM and FairGRAPE remove the same share of each layer, as their papers do, unless another
    budget is asked for."""
    names = ("fpgm", "fairgrape", "magnitude")
    config = Config(data=str(source), model="mlp", granularity="filter")
    for given, expected in (
        (None, ("uniform", "uniform", "global")),
        ("global", ("global",) * 3),
        ("uniform", ("uniform",) * 3),
    ):
        asked = Comparison(
            dataclasses.replace(config, budget=given), names, (0.5,), reference="magnitude"
        )
        assert tuple(asked.method(n, 0.5, 0).budget for n in names) == expected


def test_a_second_fold_compiles_nothing(source):
    """Other rows, shares, normalization, seeds, sparsities and tolerances: the same programs."""

    def run(design, fold):
        problem, reference, costs = start_repetition(design, 0, fold)
        each = [
            design.method(name, sparsity, 7 * fold).run(problem, reference)
            for name, sparsity in design.runs
        ]
        return sum(s.costs.compile_seconds for s in each) + costs.compile_seconds

    def programs():
        return train.weight_stretch.compiled, solver.outer_stretch.compiled

    run(held(source), 0)
    before = programs()
    assert min(before) > 0
    spent = run(held(source, tolerance="3%", sparsities=(0.7, 0.2), seed=5), 1)
    assert programs() == before
    assert spent == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "snipp"], "snip"),
        (["--methods", "magnitude", "--reference", "snip"], "not among the methods"),
        (["--methods", "magnitude,magnitude"], "given twice"),
        (["--folds", "1"], "at least 2 folds"),
        (["--folds", "many"], "--folds wants a whole number"),
        (["--sparsities", "0.5,high"], "--sparsities are numbers"),
        (["--dense", "run"], "leave out --dense"),
        (["--sparsity", "0.5"], "--sparsity says nothing here: give --sparsities"),
        (["--method=snip"], "--method says nothing here: give --methods"),
        (["--methods"], "--methods wants a value"),
        (["--methods", "magnitude,snip", "--score-step", "0.3"], "--score-step is no option of"),
    ],
)
def test_mistakes_get_one_sentence(words, said, capsys, tmp_path):
    assert main(["compare", "--out", str(tmp_path / "out"), *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
