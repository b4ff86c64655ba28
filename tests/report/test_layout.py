"""How the page looks: nothing is cut or overlaps on any screen or sheet, all can be read."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser import open_in_browser
from stored import render
from test_certificate import certificate
from test_serving import DIGEST, profile

from fairbilevel.report import Panel, forest_svg, frontier_svg
from fairbilevel.report.charts import DARK, LIGHT, STYLES

DARKEN = ("screen and (prefers-color-scheme:dark)", "all")
PRINT = (("@media print", "@media all"), ("@media screen", "@media tty"))
# Width of the frame in pixels, and what makes the page think that it is on such a medium. A sheet
# of A4 is 180 mm wide within its margins.
MEDIA: dict[str, tuple[int, tuple[tuple[str, str], ...]]] = {
    "phone": (360, ()),
    "phone, dark": (360, (DARKEN,)),
    "tablet": (768, ()),
    "desk": (1280, ()),
    "desk, dark": (1280, (DARKEN,)),
    "paper": (680, PRINT),
}


@pytest.fixture(scope="module")
def pages(example_run: Any, name_lists: dict[str, list[str]]) -> dict[str, str]:
    race = name_lists["race_gender"]
    long = [f"people of the {i}th very long-named administrative district" for i in range(6)]
    many = [f"group {i}" for i in range(90)]
    return {
        "certificate": render(
            *example_run(race, reported_only=race[:2]), certificate(race).to_json(),
            profile=profile("weight"), network=DIGEST,
        ),
        "long names": render(*example_run([*long, *name_lists["hostile"][2:]], seed=1)),
        "many groups": render(*example_run(many, rows={"test": 9000}, layers=80), None),
        "no limits": render(*example_run(["a", "b"], constraints=[], baseline=False, seed=2)),
        "diverged": render(*example_run(name_lists["digits"], diverged=True, seed=3)),
    }  # fmt: skip


FAULTY = """<body style="margin:0"><p style="color:#999">pale</p>
<div style="width:60px;overflow:hidden;white-space:nowrap">cut off at the end</div>
<p style="width:900px;background:#000;color:#fff">wide</p>
<svg viewBox="0 0 100 20" width="100"><text y="12">one</text><text x="5" y="14">two</text>
<text x="95" y="12">out</text></svg>"""


def drawings() -> dict[str, str]:
    """Pictures of a comparison and of a frontier, with long names and points close together."""
    lines = [
        {"method": method, "sparsity": sparsity, "mean": 0.01 * i, "low": -0.5, "high": 0.02 * i}
        for i, method in enumerate(("gradual-magnitude:distill=0.27,match_dense=true", "bilevel"))
        for sparsity in (0.5, 0.9, 0.95)
    ]
    panels = [
        Panel(f"Accuracy less the reference's ({i})", "mean", "low", "high", 100) for i in "abc"
    ]
    networks = [("dense", 0.0, None, 0.0)]
    networks += [("bilevel", s, 0.01 * t, 0.002 * t) for s in (0.9, 0.95) for t in range(5)]
    networks += [("gradual-magnitude", s, None, 0.02) for s in (0.9, 0.95)]
    points = [
        {
            "method": method, "sparsity": sparsity, "tolerance": tolerance, "chosen": gap == 0.002,
            **{f"{r}_gap": gap for r in ("tune", "test")},
            **{f"{r}_accuracy": 0.9 - sparsity / 100 + gap for r in ("tune", "test")},
        }
        for method, sparsity, tolerance, gap in networks
    ]  # fmt: skip
    return {
        "comparison": forest_svg(lines, panels, title="Every method", note="On test. " * 20),
        "frontier": frontier_svg(points),
    }


@pytest.fixture(scope="module")
def faults(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is wrong with each page on each medium, from one start of the browser."""
    frames = []
    for (name, page), (medium, (width, changes)) in itertools.product(pages.items(), MEDIA.items()):
        page = page.replace("http-equiv", "data-was")  # its policy forbids measuring scripts
        for old, new in changes:
            page = page.replace(old, new)
        frames.append((f"{name} on {medium}", width, page))
    frames += [(name, 1400, f"<body>{drawing}") for name, drawing in drawings().items()]
    frames.append(("faulty", 360, FAULTY))
    folder = tmp_path_factory.mktemp("layout")
    script = Path(__file__).with_name("layout.js").read_text(encoding="utf-8")
    told = json.dumps(frames).replace("</", "<\\/")
    (folder / "host.html").write_text(
        f"""<meta charset="utf-8"><body><script>{script}
        const frames = {told}.map(([name, width, page]) => {{
          const frame = document.createElement("iframe");
          [frame.name, frame.width, frame.height, frame.srcdoc] = [name, width, 900, page];
          frame.style.border = 0;
          return document.body.appendChild(frame);
        }});
        onload = () => {{
          const found = frames.map(f => [f.name, faults(f.contentDocument)]);
          document.body.textContent = JSON.stringify(found);
        }};</script>""",
        encoding="utf-8",
    )
    document = open_in_browser(folder / "host.html", folder)[0]
    found = re.search(r"<body>(.*)</body>", document, flags=re.DOTALL)
    assert found is not None
    return dict(
        json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    )


@pytest.mark.parametrize("medium", MEDIA)
def test_nothing_is_cut_covered_or_pale(faults: dict[str, list[str]], medium: str) -> None:
    here = {name: found for name, found in faults.items() if name.endswith(f"on {medium}")}
    assert len(here) == 5
    assert not any(here.values()), json.dumps(here, indent=1, ensure_ascii=False)[:6000]


@pytest.mark.parametrize("name", ["comparison", "frontier"])
def test_a_drawing_in_a_file_of_its_own_is_whole(faults: dict[str, list[str]], name: str) -> None:
    assert faults[name] == []


def test_what_is_wrong_would_be_seen(faults: dict[str, list[str]]) -> None:
    said = "\n".join(faults["faulty"])
    assert "the page scrolls sideways" in said
    assert "wider than its box: <div>" in said
    assert "text outside its box: <div>" in said
    assert "text outside its chart: <text> “out”" in said
    assert "over <text> “two”: <text> “one”" in said
    assert "pale text: <p> “pale”" in said
    assert "“wide”" not in said


def luminance(color: str) -> float:
    values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    """Of two colours, by WCAG 2.2."""
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_are_seen_on_their_ground(theme: dict[str, str]) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert set(theme) == set(LIGHT)
    for name, ground in itertools.product(("ink", "soft", "muted"), ("paper", "tint")):
        assert contrast(theme[name], theme[ground]) >= 4.5, (name, ground)
    # What is left has another use beside one of these: an outline, a hatch, a grid behind numbers.
    marks = {"green", "amber", "red", "muted", *(color for color, _, _ in STYLES)}
    for name in marks:
        assert contrast(theme[name], theme["paper"]) >= 3, name


def test_nothing_is_said_by_colour_alone(pages: dict[str, str]) -> None:
    assert len({look[1:] for look in STYLES}) == len(STYLES)
    for page in pages.values():
        for kind, word in (("good", "✓ met"), ("bad", "✗ not met")):
            for cell in re.findall(rf'<td class="{kind}".*?</td>', page, flags=re.DOTALL):
                assert word in cell
        for bar in re.findall(r'<rect [^>]*class="bar-baseline"[^>]*>', page):
            assert "-hatch)" in bar
        # A chart paints with names of the palette, which the page has for both themes.
        drawn = "".join(re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL))
        assert not re.search(r'(fill|stroke)="#', drawn)
        assert set(re.findall(r'class="c-(\w+)"', drawn)) <= set(LIGHT)
