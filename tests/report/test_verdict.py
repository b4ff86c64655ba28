"""The wording of the verdict, and its twin in the terminal."""

from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from stored import judge, render, summary_table, verdict

MakeRun = Callable[..., tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]]


def small_result(small: int = 40, **changes: Any) -> dict[str, Any]:
    """Two groups with numbers that can be worked out by hand; `small` rows in the smaller one."""

    def model(accuracy: float, a: float, b: float) -> dict[str, Any]:
        return {
            "test": {
                "accuracy": accuracy,
                "loss": 0.5,
                "group_accuracy": {"a": a, "b": b},
                "group_size": {"a": 1000, "b": small},
            }
        }

    return {
        "status": "completed",
        "data": {
            "groups": ["a", "b"],
            "counted_groups": ["a", "b"],
            "roles": {"test": 1040},
        },
        "sparsity": {"achieved": 0.95, "prunable": 20000, "kept": 1000, "unit": "weight"},
        "dense": model(0.90, 0.90, 0.90),
        "pruned": {"fit": {}, "select": {}, "tune": {}, **model(0.888, 0.89, 0.85)},
        "gaps": {"test": {"excess_accuracy_gap": {"a": -0.002, "b": 0.038}}},
        "constraints": [],
        **changes,
    }


def limit(name: str, tolerance: float, violation: float | None, **others: float) -> dict[str, Any]:
    measured = {"test": violation, **others}
    return {"name": name, "tolerance": tolerance, "largest_violation": measured}


def test_what_was_removed_and_what_it_cost() -> None:
    text = verdict(small_result())
    assert text == (
        "No fairness limit was set for this run. "
        "95.0 % of the prunable weights were removed (19,000 of 20,000). "
        "Accuracy on the 1,040 test rows went from 90.0 % to 88.8 %, a loss of 1.2 points. "
        "The group “b” loses most: 5.0 points (from 90.0 % to 85.0 %), "
        "3.8 points more than average. "
        "No certificate has been computed: these are point estimates on 1,040 test rows. "
        "In the smallest counted group (40 rows) a single row is worth 2.5 points."
    )


@pytest.mark.parametrize(
    ("violations", "headline"),
    [
        ([-0.01], "The fairness limit is met on test data."),
        ([0.0], "The fairness limit is met on test data."),
        ([0.01], "The fairness limit is not met on test data."),
        ([-0.01, -0.01], "Both fairness limits are met on test data."),
        ([-0.01] * 3, "All 3 fairness limits are met on test data."),
        ([0.01, -0.01], "1 of 2 fairness limits is not met on test data."),
        ([0.01, 0.01], "Neither of the 2 fairness limits is met on test data."),
        ([0.01, 0.01, -0.01], "2 of 3 fairness limits are not met on test data."),
        ([0.01] * 3, "None of the 3 fairness limits is met on test data."),
        ([None], "The fairness limit could not be measured on test data."),
        ([-0.01, None], "1 of 2 fairness limits could not be measured on test data."),
        ([0.01, None], "1 of 2 fairness limits is not met on test data."),
    ],
)
def test_headline(violations: list[float | None], headline: str) -> None:
    names = ("excess-accuracy-gap", "accuracy-gap", "own")
    bounds = [limit(name, 0.02, v) for name, v in zip(names, violations, strict=False)]
    assert verdict(small_result(400, constraints=bounds)).startswith(headline)


@pytest.mark.parametrize(
    ("small", "others", "headline"),
    [
        (400, {"fit": -0.01, "tune": 0.0}, "The fairness limit is met on test data."),
        (400, {"tune": 0.03}, "The fairness limit is met on test data, but not on tune."),
        (
            400,
            {"fit": 0.01, "select": 0.02, "tune": 0.03},
            "The fairness limit is met on test data, but not on fit, select and tune.",
        ),
        (
            7,
            {"fit": -0.01},
            "The fairness limit is met on test data, but “b” has 7 rows there, of which one is "
            "worth 14.3 points: too few to tell.",
        ),
        (
            7,
            {"fit": 0.01, "tune": 0.01},
            "The fairness limit is met on test data, but not on fit and tune, and “b” has 7 rows "
            "there, of which one is worth 14.3 points: too few to tell.",
        ),
    ],
)
def test_the_headline_weighs_all_roles_and_the_rows_behind_them(
    small: int, others: dict[str, float], headline: str
) -> None:
    result = small_result(small, constraints=[limit("excess-accuracy-gap", 0.02, -0.01, **others)])
    found = judge(result)
    assert found.headline == headline
    assert found.state == ("met" if headline.endswith("test data.") else "doubtful")
    lines = printed(result)
    assert max(map(len, lines)) <= 80
    assert headline in " ".join(" ".join(lines).split())


def test_few_rows_leave_a_wide_limit_alone() -> None:
    wide = [limit("accuracy-gap", 0.3, -0.01), limit("equalized-loss", 0.01, -0.01)]
    assert judge(small_result(7, constraints=wide)).state == "met"
    floor = {**limit("worst-group-accuracy", 0.8, -0.01), "floor": True}
    assert judge(small_result(7, constraints=[floor])).state == "met"
    assert judge(small_result(4, constraints=[floor])).state == "doubtful"


def answering(share: float, majority: float) -> dict[str, Any]:
    result = small_result(400, constraints=[limit("excess-accuracy-gap", 0.02, -0.01)])
    for model, balanced in (("dense", 0.71), ("pruned", 0.55)):
        result[model]["test"] |= {
            "balanced_accuracy": balanced,
            "majority_class": "no",
            "majority_share": majority,
            "commonest_answer": "no",
            "commonest_answer_share": share,
        }
    return result


def test_a_nearly_constant_model_is_named(example_run: MakeRun) -> None:
    result = answering(0.97, 0.84)
    found = judge(result)
    said = "The pruned model answers “no” for 97.0 % of the test rows: its gaps say little of"
    assert found.headline.startswith(said)
    assert found.state == "missed"
    assert (
        "Always answering the commonest class, “no”, would be right for 84.0 %; the mean over "
        "classes (balanced accuracy) is 71.0 % before, 55.0 % after." in found.sentences
    )
    text = " ".join(" ".join(printed(result)).split())
    assert said in text
    assert "Balanced accuracy" in text
    assert said in render({}, result, []).replace("\xa0", " ")
    # Where the labels are as uneven as the answers, so many equal answers are no fault.
    assert judge(answering(0.97, 0.96)).state == "met"
    assert judge(answering(0.85, 0.5)).state == "met"


def test_limits_of_groups_are_shown() -> None:
    bound = {
        "name": "excess-accuracy-gap",
        "tolerance": None,
        "group_tolerance": {"a": 0.02, "b": 0.05},
        "value": {"fit": 0.012, "select": None, "tune": 0.031, "test": 0.038},
        "largest_violation": {"fit": -0.03, "select": None, "tune": 0.011, "test": -0.012},
    }
    result = small_result(constraints=[bound])
    assert (
        "Excess accuracy gap: 3.8 points on test, limit 2 points, 5 for “b”: met, with 1.2 "
        "points to spare." in verdict(result)
    )
    (line,) = (li for li in printed(result) if "limit 2–5" in li)
    assert line.split()[-7:] == ["1.2", "✓", "–", "3.1", "✗", "3.8", "✓"]
    assert "limit 2 points, 5 for “b”" in "\n".join(printed(result))
    page = render({}, result, [])
    for cell in ("3.8<small>✓ met", "3.1<small>✗ not met", "2 points, 5 for “b”"):
        assert cell in page
    many = {f"g{i}": 0.01 * i for i in range(1, 9)}
    text = verdict(small_result(constraints=[{**bound, "group_tolerance": many}]))
    assert "limit 1 to 8 points by group" in text


@pytest.mark.parametrize(
    ("bound", "sentence"),
    [
        (
            limit("excess-accuracy-gap", 0.02, 0.018),
            "Excess accuracy gap: 3.8 points on test, limit 2 points: not met, 1.8 points over.",
        ),
        (
            limit("accuracy-gap", 0.0525, -0.0125),
            "Accuracy gap: 4.0 points on test, limit 5.25 points: met, with 1.2 points to spare.",
        ),
        (
            limit("degradation-gap", 0.02, 0.0003),
            "Degradation gap: 2.03 points on test, limit 2 points: "
            "not met, less than 0.1 points over.",
        ),
        (
            limit("excess-accuracy-gap", 0.02, 0.0),
            "Excess accuracy gap: 2.0 points on test, limit 2 points: met exactly.",
        ),
        (
            limit("equalized-loss", 0.1, 0.05),
            "Equalized loss: 0.150 nats on test, limit 0.100 nats: not met, 0.050 nats over.",
        ),
        (
            limit("my-own-rule", 0.02, -0.01),
            "My own rule: 0.010 on test, limit 0.020: met, with 0.010 to spare.",
        ),
        (
            limit("accuracy-gap", 0.02, None),
            "Accuracy gap: could not be measured on test.",
        ),
    ],
)
def test_limits_in_words(bound: dict[str, Any], sentence: str) -> None:
    assert sentence in verdict(small_result(constraints=[bound]))


def test_a_diverged_run_is_not_praised() -> None:
    text = verdict(
        small_result(
            status="diverged",
            diagnosis="The loss became infinite at step 12.",
            constraints=[limit("accuracy-gap", 0.02, -0.01)],
        )
    )
    assert text.startswith(
        "The run diverged: the pruned model must not be used. The loss became infinite at step 12."
    )
    assert "the state in which the run stopped" in text
    assert " met" not in text


def test_a_gain_is_called_a_gain() -> None:
    result = small_result()
    result["pruned"]["test"].update(accuracy=0.92, group_accuracy={"a": 0.92, "b": 0.91})
    result["gaps"]["test"]["excess_accuracy_gap"] = {"a": 0.0, "b": 0.01}
    text = verdict(result)
    assert "from 90.0 % to 92.0 %, a gain of 2.0 points." in text
    assert "No group loses accuracy; the group “b” gains least, 1.0 points" in text


def test_unchanged_accuracy_is_called_so() -> None:
    result = small_result()
    result["pruned"] = result["dense"]
    result["gaps"]["test"]["excess_accuracy_gap"] = {"a": 0.0, "b": 0.0}
    text = verdict(result)
    assert "Accuracy on the 1,040 test rows stayed at 90.0 %." in text
    assert "No group loses accuracy" in text


def test_a_group_that_is_reported_only_is_not_the_one_that_loses_most() -> None:
    result = small_result()
    result["data"].update(groups=["a", "b", "c"], counted_groups=["a", "b"])
    for model, accuracy in (("dense", 0.9), ("pruned", 0.1)):
        result[model]["test"]["group_accuracy"]["c"] = accuracy
        result[model]["test"]["group_size"]["c"] = 3
    result["gaps"]["test"]["excess_accuracy_gap"]["c"] = 0.788
    text = verdict(result)
    assert "“b” loses most" in text
    assert "(40 rows)" in text


def test_filters_are_called_filters() -> None:
    sparsity = {"achieved": 0.5, "prunable": 64, "kept": 32, "unit": "filter"}
    assert "50.0 % of the prunable filters were removed (32 of 64)." in verdict(
        small_result(sparsity=sparsity)
    )


def test_the_excess_gap_is_worked_out_where_the_file_lacks_it() -> None:
    result = small_result()
    del result["gaps"]
    assert "3.8 points more than average" in verdict(result)


def test_an_empty_result_has_a_verdict() -> None:
    assert "No certificate has been computed" in verdict({})


def printed(result: dict[str, Any]) -> list[str]:
    console = Console(width=80, record=True, file=None, force_terminal=False, quiet=False)
    with console.capture() as capture:
        console.print(summary_table(result))
    return capture.get().splitlines()


def test_the_terminal_shows_groups_gaps_and_verdict(example_run: MakeRun) -> None:
    result = example_run(reported_only=["White, male"])[1]
    lines = printed(result)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    for group, accuracy in result["pruned"]["test"]["group_accuracy"].items():
        start = group[:10]
        assert any(start in line and f"{100 * accuracy:.1f} %" in line for line in lines)
    for column in ("Dense", "Pruned", "GradMag", "Fit", "Select", "Tune", "Test"):
        assert column in text
    flowing = " ".join(text.split())
    assert " ".join(verdict(result).split()) in flowing


def test_the_terminal_survives_hostile_names(
    example_run: MakeRun, name_lists: dict[str, list[str]]
) -> None:
    names = [*name_lists["hostile"], "\x1b[2Jgone", "[bold]loud[/bold]", "[/]"]
    text = "\n".join(printed(example_run(names)[1]))
    assert "\x1b[2J" not in text
    assert "[bold]loud[/bold]" in text
    text.encode("utf-8")


def test_the_terminal_shows_the_ends_of_many_groups(example_run: MakeRun) -> None:
    result = example_run([f"g{i}" for i in range(300)], rows={"test": 9000}, log_lines=1)[1]
    lines = printed(result)
    assert sum(line.strip().startswith("g") and "%" in line for line in lines) == 20
    assert "280 left out" in "\n".join(lines)


def test_the_terminal_prints_an_empty_result() -> None:
    assert printed({})


@pytest.mark.parametrize("found", [7, "text", {"name": "x"}, [7]])
def test_a_distorted_list_of_limits_is_refused(found: Any) -> None:
    """Found by the fuzzer, where results were read leniently."""
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        verdict(small_result(feasibility={"constraints": found}))
