"""The web page: complete, right, self-contained, and harmless whatever the groups are called."""

import copy
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import open_in_browser
from rich.console import Console
from scipy import stats
from stored import render, summary_table, verdict

from fairbilevel.report import write_report

MakeRun = Callable[..., tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]]

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Outline(HTMLParser):
    """Collects elements, rows of table cells and text; checks that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.stack: list[str] = []
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.text.append(" ".join(data.replace("\xa0", " ").splitlines()))
        if "td" in self.stack or "th" in self.stack:
            self.rows[-1][-1] += data.replace("\xa0", " ")


def svgs(page: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)]


def signed(value: float) -> str:
    text = f"{abs(100 * value):.1f}"
    return text if text == "0.0" else ("−" if value < 0 else "+") + text


def exact_range(rate: float, size: int) -> str:
    """Clopper and Pearson's interval by the quantiles of the beta distribution."""
    right = round(rate * size)
    low = stats.beta.ppf(0.025, right, size - right + 1) if right else 0.0
    high = stats.beta.ppf(0.975, right + 1, size - right) if right < size else 1.0
    return f"{100 * low:.1f} to {100 * high:.1f}"


def cases(make: MakeRun, names: dict[str, list[str]]) -> dict[str, tuple[Any, Any, Any]]:
    return {
        "digits": make(names["digits"], constraints=["excess-accuracy-gap"]),
        "race and gender": make(names["race_gender"], reported_only=[names["race_gender"][9]]),
        "two groups": make(["women", "men"], constraints=["equalized-loss"]),
        "no baseline": make(baseline=False, constraints=[]),
        "diverged": make(diverged=True),
        "hostile": make(names["hostile"]),
        "one group": make(["everyone"]),
    }


@pytest.fixture(scope="module")
def pages(
    example_run: MakeRun, name_lists: dict[str, list[str]]
) -> dict[str, tuple[dict[str, Any], str]]:
    return {
        name: (result, render(config, result, metrics))
        for name, (config, result, metrics) in cases(example_run, name_lists).items()
    }


def test_nothing_comes_from_outside(pages: dict[str, tuple[dict[str, Any], str]]) -> None:
    for _, page in pages.values():
        for tag, attrs in Outline(page).elements:
            assert tag not in ("script", "iframe", "object", "embed", "img", "base")
            for name in ("src", "href", "srcset", "data", "action"):
                assert (attrs.get(name) or "data:").startswith(("data:", "#"))
            assert not any(name.startswith("on") for name in attrs)
        style = re.search(r"<style>(.*?)</style>", page, flags=re.DOTALL)
        assert style is not None
        assert "@import" not in style[1]
        assert "url(" not in style[1]


def test_the_policy_forbids_what_the_page_does_not_need(
    pages: dict[str, tuple[dict[str, Any], str]],
) -> None:
    for _, page in pages.values():
        assert "default-src 'none'" in page


def test_hostile_names_are_text_only(pages: dict[str, tuple[dict[str, Any], str]]) -> None:
    _, page = pages["hostile"]
    assert "<script" not in page
    assert "<img" not in page
    assert not re.search("[\x00-\x08\u202e\ud800-\udfff]", page)
    page.encode("utf-8")
    assert "<script>alert(1)</script>" in "".join(Outline(page).text)


def test_every_string_of_the_run_is_escaped(example_run: MakeRun) -> None:
    config, result, metrics = example_run(["a", "b"])
    evil = "<script>x</script>\"'&"

    def poison(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {k: poison(v) for k, v in tree.items()}
        if isinstance(tree, list):
            return [poison(v) for v in tree]
        return tree + evil if isinstance(tree, str) else tree

    poisoned = poison(result)
    poisoned["versions"][evil] = evil
    poisoned["data"]["skipped"][evil] = 1
    for line in metrics:
        line.get("violations", {})[evil] = {evil: 0.1}
        line.get("multipliers", {})[evil] = {evil: 0.1}
    page = render({evil: evil, **poison(config)}, poisoned, metrics)
    assert "<script" not in page
    assert "".join(Outline(page).text).count("<script>x</script>") > 15
    assert svgs(page)


def test_charts_are_well_formed_and_say_what_they_show(
    pages: dict[str, tuple[dict[str, Any], str]],
) -> None:
    for name, (_, page) in pages.items():
        ids = [i for svg in svgs(page) for i in (e.get("id") for e in svg.iter()) if i]
        assert len(ids) == len(set(ids)), name
        charts = [svg for svg in svgs(page) if svg.get("aria-hidden") != "true"]
        assert len(charts) >= 10
        for svg in charts:
            assert svg.get("role") == "img"
            title, desc = svg.find("title"), svg.find("desc")
            assert title is not None
            assert desc is not None
            assert svg.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
            assert title.text
            assert re.search(r"\d", desc.text or "")
        for reference in re.findall(r"url\(#([^)]*)\)", page):
            assert reference in ids


def test_charts_stay_inside_their_frame(pages: dict[str, tuple[dict[str, Any], str]]) -> None:
    for name, (_, page) in pages.items():
        for svg in svgs(page):
            _, _, width, height = map(float, svg.get("viewBox", "").split())
            for element in svg.iter():
                for key, size in (("x", width), ("x1", width), ("x2", width), ("cx", width)):
                    assert -0.1 <= float(element.get(key, 0)) <= size + 0.1, (name, svg.get("role"))
                for key in ("y", "y1", "y2", "cy"):
                    assert -0.1 <= float(element.get(key, 0)) <= height + 0.1, name


def test_the_group_table_holds_every_number(
    pages: dict[str, tuple[dict[str, Any], str]], name_lists: dict[str, list[str]]
) -> None:
    result, page = pages["race and gender"]
    rows = {row[0]: row[1:] for row in Outline(page).rows if len(row) == 9}
    dense, pruned, other = (result[m]["test"] for m in ("dense", "pruned", "baseline"))
    gaps, other_gaps = result["gaps"]["test"], result["baseline_gaps"]["test"]
    for name in name_lists["race_gender"]:
        shown = name if name in result["data"]["counted_groups"] else f"{name} †"
        before, after = dense["group_accuracy"][name], pruned["group_accuracy"][name]
        lost, won = gaps["discordant"][name]
        size = dense["group_size"][name]
        # Agresti and Min: half a row in each cell of the table of pairs, then Wald.
        middle, seen = (won - lost) / (size + 2), lost + won + 1
        error = 1.959964 * ((seen - (won - lost) ** 2 / (size + 2)) ** 0.5) / (size + 2)
        assert rows[shown] == [
            f"{size:,}",
            f"{100 * before:.1f} %{exact_range(before, size)}",
            f"{100 * after:.1f} %{exact_range(after, size)}",
            f"{signed(after - before)}{signed(middle - error)} to {signed(middle + error)}",
            signed(gaps["excess_accuracy_gap"][name]),
            f"{lost} / {won}",
            f"{100 * other['group_accuracy'][name]:.1f} %"
            f"{exact_range(other['group_accuracy'][name], size)}",
            signed(other_gaps["excess_accuracy_gap"][name]),
        ]
    assert rows["All rows"][:4] == [
        "2,500",
        f"{100 * dense['accuracy']:.1f} %",
        f"{100 * pruned['accuracy']:.1f} %",
        signed(pruned["accuracy"] - dense["accuracy"]),
    ]
    *inside, outside = list(rows)[2:]
    assert outside == f"{name_lists['race_gender'][9]} †"
    excess = [gaps["excess_accuracy_gap"][n] for n in inside]
    assert excess == sorted(excess, reverse=True)


def test_gaps_stand_side_by_side_on_all_roles(
    pages: dict[str, tuple[dict[str, Any], str]],
) -> None:
    result, page = pages["race and gender"]
    rows = Outline(page).rows
    for gaps in ("gaps", "baseline_gaps"):
        for key, name in (
            ("accuracy_gap", "Accuracy gap"),
            ("degradation_gap", "Degradation gap"),
            ("max_excess_accuracy_gap", "Largest excess loss"),
        ):
            values = [result[gaps][role][key] for role in ("fit", "select", "tune", "test")]
            assert [name, *(f"{100 * v:.1f}" for v in values)] in rows


def test_the_page_says_the_verdict(pages: dict[str, tuple[dict[str, Any], str]]) -> None:
    for result, page in pages.values():
        text = "".join(Outline(page).text)
        assert verdict(result).split(". ")[0] in text
        assert "No certificate has been computed: these are point estimates on" in text


def test_the_page_says_what_the_pruned_network_keeps(
    pages: dict[str, tuple[dict[str, Any], str]],
) -> None:
    for _, page in pages.values():
        assert (
            "78,319 of 1,312,882 parameters (6.0 %), 3,104,268 of 40,582,144 multiply-adds a row "
            "(7.6 %)" in "".join(Outline(page).text)
        )


@pytest.mark.parametrize(
    "missing",
    [
        [
            "seed",
            "versions",
            "command",
            "data",
            "model",
            "sparsity",
            "layers",
            "dense",
            "pruned",
            "baseline",
            "gaps",
            "baseline_gaps",
            "constraints",
            "cost",
            "warnings",
        ],
        ["dense"],
        ["pruned"],
        ["gaps"],
        ["baseline", "baseline_gaps"],
        ["baseline_gaps"],
        ["constraints"],
        ["layers", "cost"],
        ["data"],
    ],
    ids=" ".join,
)
def test_parts_may_be_missing_or_null(example_run: MakeRun, missing: list[str]) -> None:
    config, result, metrics = example_run(["a", "b", "c"])
    absent = {k: v for k, v in result.items() if k not in missing}
    nulls = {k: None if k in missing else v for k, v in result.items()}
    page = render(config, absent, metrics)
    assert page == render(config, nulls, metrics)
    Outline(page)
    text = "".join(Outline(page).text)
    assert not re.search(r"\bNone\b|\bnan\b|\binf\b", text)
    assert svgs(render({}, absent, []))


def test_numbers_may_be_null_or_not_finite(example_run: MakeRun) -> None:
    config, result, metrics = example_run(["a", "b", "c"])

    def blank(tree: Any, value: Any) -> Any:
        if isinstance(tree, dict):
            return {k: blank(v, value) for k, v in tree.items()}
        if isinstance(tree, list):
            return [blank(v, value) for v in tree]
        return tree if isinstance(tree, str) or tree is None else value

    for value in (None, float("nan"), float("inf")):
        without_flips = copy.deepcopy(result)
        for role in without_flips["gaps"].values():
            role["discordant"] = {}
        page = render(config, blank(without_flips, value), [blank(m, value) for m in metrics])
        assert svgs(page)
        assert not re.search(r"\b(None|nan|inf)\b", "".join(Outline(page).text))


def test_huge_values_of_a_diverged_run_are_drawn(example_run: MakeRun) -> None:
    config, result, metrics = example_run(["a", "b"], diverged=True)
    for i, line in enumerate(metrics):
        for labels in line.get("multipliers", {}).values():
            labels["a"] = 10.0 ** (i / 2)
    assert svgs(render(config, result, metrics))


def test_multipliers_that_never_moved_are_explained(example_run: MakeRun) -> None:
    said = "none, as no violation stood out on the rows that steer it"
    config, result, metrics = example_run([f"group {i}" for i in range(12)])
    text = "".join(Outline(render(config, result, metrics)).text)
    assert said not in text
    assert "8 of 12: largest multipliers." in text
    for line in metrics:
        for labels in line.get("multipliers", {}).values():
            labels.update(dict.fromkeys(labels, 0.0))
    text = "".join(Outline(render(config, result, metrics)).text)
    assert said in text
    assert "8 of 12: largest violations." in text


def test_a_group_without_rows_is_named_as_unknown(example_run: MakeRun) -> None:
    config, result, metrics = example_run(["a", "b", "nobody"])
    for model in ("dense", "pruned", "baseline"):
        result[model]["test"]["group_accuracy"]["nobody"] = None
        result[model]["test"]["group_size"]["nobody"] = 0
    for gaps in ("gaps", "baseline_gaps"):
        result[gaps]["test"]["excess_accuracy_gap"]["nobody"] = None
    outline = Outline(render(config, result, metrics))
    assert ["nobody", "0", "–", "–"] in [row[:4] for row in outline.rows]
    assert "No test rows, so nothing is known about: 1: nobody." in "".join(outline.text)


def test_a_thousand_groups_do_not_explode_the_page(example_run: MakeRun) -> None:
    groups = [f"group {i}" for i in range(1000)]
    config, result, metrics = example_run(
        groups, rows={"test": 20_000}, log_lines=5, layers=200, constraints=["excess-accuracy-gap"]
    )
    page = render(config, result, metrics)
    assert len(page) < 400_000
    outline = Outline(page)
    assert sum(row[0].startswith("group ") for row in outline.rows) == 40
    text = "".join(outline.text)
    assert "960 groups between these are left out" in text
    assert "8 of 1,000: largest multipliers." in text
    excess = result["gaps"]["test"]["excess_accuracy_gap"]
    assert max(excess, key=excess.__getitem__) in text
    assert min(excess, key=excess.__getitem__) in text


def test_the_baseline_column_is_there_only_with_a_baseline(
    pages: dict[str, tuple[dict[str, Any], str]],
) -> None:
    assert "Gradual magnitude" in pages["digits"][1]
    assert "Gradual magnitude" not in pages["no baseline"][1]


def save(folder: Path, run: tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]) -> None:
    config, result, metrics = run
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))


def test_write_report_reads_the_run_folder(example_run: MakeRun, tmp_path: Path) -> None:
    run = example_run()
    save(tmp_path, run)
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == render(*run)
    assert not list(tmp_path.glob("*.partial"))


def test_write_report_needs_only_the_result(example_run: MakeRun, tmp_path: Path) -> None:
    save(tmp_path, example_run())
    (tmp_path / "config.json").unlink()
    (tmp_path / "metrics.jsonl").unlink()
    assert "no progress lines" in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_last_line_cut_short_is_left_out(example_run: MakeRun, tmp_path: Path) -> None:
    run = example_run()
    save(tmp_path, run)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "fine')
    assert write_report(tmp_path).read_text(encoding="utf-8") == render(*run)


def test_errors_name_the_file(example_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no result\.json"):
        write_report(tmp_path)
    save(tmp_path, example_run())
    (tmp_path / "metrics.jsonl").write_text("{\n{}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1"):
        write_report(tmp_path)
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(ValueError, match=r"result\.json holds no JSON object"):
        write_report(tmp_path)


def test_the_trade_off_says_where_every_network_lies(
    pages: dict[str, tuple[dict[str, Any], str]],
) -> None:
    result, page = pages["race and gender"]
    charts = {svg.findtext("title"): svg.findtext("desc") or "" for svg in svgs(page)}
    on_test = charts["Accuracy against the largest gap on test"]
    for model, gaps, name in (
        ("pruned", "gaps", "Pruned"),
        ("baseline", "baseline_gaps", "Gradual magnitude"),
    ):
        accuracy = 100 * result[model]["test"]["accuracy"]
        gap = 100 * result[gaps]["test"]["max_excess_accuracy_gap"]
        said = f"{name}: accuracy {accuracy:.1f} %, largest gap {gap:.1f} points."
        assert said in on_test
    assert f"Dense: accuracy {100 * result['dense']['test']['accuracy']:.1f} %" in on_test
    assert "Accuracy against the largest gap on tune over the run" in charts
    assert "Accuracy against fairness" not in pages["diverged"][1]


def test_groups_outside_every_limit_lead_nothing(example_run: MakeRun) -> None:
    """A group of one row has any gap: it is neither on top, nor named, nor does it stretch axes."""
    groups = [f"group {i:02}" for i in range(80)]
    lone = groups[::4]
    config, result, metrics = example_run(groups, rows={"test": 4000}, reported_only=lone)
    for model, accuracy in (("dense", 1.0), ("pruned", 0.0), ("baseline", 1.0)):
        for name in lone:
            result[model]["test"]["group_accuracy"][name] = accuracy
            result[model]["test"]["group_size"][name] = 1
    for name in lone:
        result["gaps"]["test"]["excess_accuracy_gap"][name] = 0.99
        result["gaps"]["test"]["discordant"][name] = [1, 0]
    page = render(config, result, metrics)
    rows = [row for row in Outline(page).rows if row[0].startswith("group") and len(row) == 9]
    first, marked = rows[0][0], [row[0].endswith("†") for row in rows]
    assert marked == [False] * 40 + [True] * 10
    assert f"The group “{first}” loses most" in verdict(result)
    text = "".join(Outline(page).text)
    assert "20 groups between these are left out" in text
    assert "10 more groups outside every limit are left out." in text
    for svg in svgs(page):
        said = svg.findtext("desc") or ""
        if "by group, on test" in (svg.findtext("title") or ""):
            assert "99" not in said
            assert not any(name in ET.tostring(svg, "unicode") for name in lone)
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(summary_table(result))
    lines = [li.split() for li in capture.get().splitlines() if li.strip().startswith("group")]
    assert " ".join(lines[0][:2]) == first
    assert ["†" in line for line in lines] == [False] * 20 + [True] * 10


def test_a_file_of_lower_precision_shows_its_gaps(example_run: MakeRun) -> None:
    """They were left out once: the file names them as `result.json` did."""

    def gaps(worst: float) -> dict[str, Any]:
        names = ("accuracy_gap", "degradation_gap", "max_excess_accuracy_gap")
        return {"worst_group_accuracy": worst, **dict.fromkeys(names, 1 - worst)}

    told = {
        "groups": ["a", "b"],
        "counted_groups": ["a"],
        "gaps": gaps(0.9),
        "file_gaps": gaps(0.8),
    }
    export = {"file": "x.onnx", "checked": {"rows": 200, "changed": 3}, "by_group": told}
    outline = Outline(render(*example_run(), exports=[export]))
    assert ["Worst group’s accuracy", "90.0 %", "80.0 %"] in outline.rows
    for name in ("Accuracy gap", "Degradation gap", "Largest excess loss"):
        assert [name, "10.0", "20.0"] in outline.rows
    assert "x.onnx, lower precision: 3 of 200 rows (1.5 %) get" in "".join(outline.text)


def test_every_cell_names_its_column(pages: dict[str, tuple[dict[str, Any], str]]) -> None:
    """On a phone a row is a card, whose values would have no names otherwise."""
    for _, page in pages.values():
        for table in re.findall(r"<table>.*?</table>", page, flags=re.DOTALL):
            head = re.findall(r'<th scope="col">(.*?)</th>', table)
            for row in re.findall(r'<tr[^>]*><th scope="row">.*?</tr>', table):
                assert re.findall(r'<td[^>]* data-label="([^"]*)"', row) == head[1:]


def test_a_browser_opens_the_page_and_asks_for_nothing(
    example_run: MakeRun, name_lists: dict[str, list[str]], tmp_path: Path
) -> None:
    save(tmp_path, example_run(name_lists["hostile"]))
    document, messages, asked = open_in_browser(write_report(tmp_path), tmp_path)
    assert "The fairness limit" in document or "fairness limits" in document
    assert "No certificate has been computed" in document
    assert "<script>alert" not in document
    # Errors of the page, and requests refused by its policy, are reported as console messages.
    assert "CONSOLE" not in messages
    assert asked == []


def test_a_page_that_asks_for_something_would_be_caught(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/picture.png">')
    assert "http://127.0.0.1:9/picture.png" in open_in_browser(page, tmp_path)[2]
