"""The section on what the network takes where it is served: of this network, whole and harmless."""

import copy
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest
from stored import render

from fairbilevel.report import counted_rows, timed_rows
from fairbilevel.report._serving import serving_section

MakeRun = Callable[..., tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]]
HEADING = "What it takes to serve"
DIGEST = "ab" * 32


def speed(engine: str, network: str, batch: int, ms: float, factor: float, clear: bool) -> Any:
    return {
        "engine": engine, "network": network, "batch": batch, "milliseconds": ms, "low": 0.9 * ms,
        "high": 1.2 * ms, "rounds": 50, "rows_per_second": 1e3 * batch / ms,
        "times_as_fast": factor, "clear": clear,
    }  # fmt: skip


def profile(granularity: str) -> dict[str, Any]:
    """As ``fairbilevel profile`` writes it."""
    dense = {
        "file_bytes": 5_300_000, "compressed_bytes": 4_800_000, "onnx_bytes": 5_310_000,
        "parameters": 1_312_882, "multiply_adds": 40_582_144, "kept_parameters": 1_312_882,
        "kept_multiply_adds": 40_582_144, "activation_bytes": 393_216,
    }  # fmt: skip
    pruned = {key: value // 4 for key, value in dense.items()}
    speeds = [
        speed(engine, network, batch, ms * batch**0.5, factor, factor != 1.0)
        for engine in ("jax", "onnxruntime")
        for batch in (1, 32)
        for network, ms, factor in (("dense", 2.0, 1.0), ("pruned", 1.25, 1.6))
    ]
    layers = []
    if granularity == "weight":
        kept = ("compressed_bytes", "kept_parameters", "kept_multiply_adds")
        pruned = {key: pruned[key] if key in kept else dense[key] for key in dense}
        speeds += [speed("jax", "sparse layers", batch, 2.1, 0.95, False) for batch in (1, 32)]
        layers = ["classifier/kernel"]
    return {
        "schema_version": 1,
        "model": "small ResNet",
        "granularity": granularity,
        "dense": dense,
        "pruned": pruned,
        "sparse_layers": layers,
        "speeds": speeds,
        "notes": ["What can be gained.", "Where it was taken."],
        "pruned_model": DIGEST,
    }


def shown(make: MakeRun, content: Any, network: str | None = DIGEST) -> str:
    config, result, metrics = make()
    page = render(config, result, metrics, profile=content, network=network)
    if HEADING not in page:
        return ""
    section = page[page.rindex("<section", 0, page.index(f">{HEADING}<")) :]
    return section[: section.index("</section>")]


def test_without_a_profile_nothing_is_shown(example_run: MakeRun) -> None:
    assert shown(example_run, None) == ""
    assert shown(example_run, {}) == ""
    assert "profile.json" not in render(*example_run())


def test_removed_filters_are_counted_once(example_run: MakeRun) -> None:
    section = shown(example_run, profile("filter"))
    assert "1,312,882" in section
    assert "328,220" in section
    assert "not removed" not in section
    assert section.count("<svg") == 6
    assert "sparse layers" not in section
    assert "What can be gained." in section
    assert "<li>Where it was taken.</li>" in section
    assert re.search(r"× 1\.60</td>", section)


def test_removed_weights_stay_where_they_are(example_run: MakeRun) -> None:
    section = shown(example_run, profile("weight"))
    rows = {row.name: row for row in counted_rows(profile("weight"))}
    assert rows["Parameters"].share == rows["Weights file"].share == 1.0
    assert rows["Parameters not removed"].share == pytest.approx(0.25, abs=1e-6)
    assert rows["Weights file, compressed"].pruned == "1.1 MiB"
    assert "Multiply-adds by what is not removed" in section
    assert "JAX, sparse layers" in section
    assert "× 0.95<small>within the scatter</small>" in section


def test_engines_stand_one_after_another() -> None:
    rows = timed_rows(profile("weight"))
    assert [(row.way, row.batch) for row in rows] == [
        ("JAX", 1), ("JAX", 32), ("ONNX Runtime", 1), ("ONNX Runtime", 32),
        ("JAX, sparse layers", 1), ("JAX, sparse layers", 32),
    ]  # fmt: skip
    for row in rows:
        assert row.dense[0] == pytest.approx(2.0 * row.batch**0.5)


@pytest.mark.parametrize("network", ["cd" * 32, None])
def test_numbers_of_another_network_are_not_shown(
    example_run: MakeRun, network: str | None
) -> None:
    section = shown(example_run, profile("filter"), network)
    assert "not of this run’s network" in section
    assert "<table" not in section
    assert "<svg" not in section


def test_whatever_the_file_holds_the_section_is_whole(example_run: MakeRun) -> None:
    evil = "<script>x</script>\"'&"
    whole = profile("weight")
    for key in whole:
        for value in (None, [], {}, [1, {"a": []}], evil, -1e300, float("nan")):
            if key != "pruned_model":
                section = serving_section({**whole, key: value}, DIGEST)
                for chart in section["figures"] if section else ():
                    ET.fromstring(chart.draw("x", chart.wide))
    poisoned = copy.deepcopy(whole)
    poisoned["notes"] = [evil, evil]
    for one in poisoned["speeds"]:
        one["engine"] = evil
    poisoned["speeds"][1] |= {"batch": 10**400, "milliseconds": evil}
    poisoned["dense"]["parameters"] = 0
    section = shown(example_run, poisoned)
    assert "<script" not in section
    assert "&lt;script&gt;" in section
    for svg in re.findall(r"<svg .*?</svg>", section, flags=re.DOTALL):
        ET.fromstring(svg)
