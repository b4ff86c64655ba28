"""The page with a certificate: its verdict is there, in words and table, and harmless."""

import html
import re

import numpy as np
import pytest
from certified import certify
from stored import render, verdict

import fairbilevel as fb


def certificate(names, gap="excess-accuracy-gap", **options):
    rng = np.random.default_rng(0)
    rows = 80 * len(names)
    group = np.arange(rows) % len(names)
    y = rng.integers(0, 2, rows)
    pruned = np.where(rng.random(rows) < 0.04, 1 - y, y)
    options = {"tolerance": 0.4, "quantity": rng.random(rows), "upper": 2.0, **options}
    return certify(y, y, pruned, group, groups=names, gap=gap, **options)


def text(page):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_the_certificate_stands_where_its_absence_was_told(example_run, name_lists):
    config, result, metrics = example_run()
    made = certificate(name_lists["race_gender"])
    page = render(config, result, metrics, made.to_json())
    said = text(page)
    assert "What untouched rows prove" in said
    assert said.count(made.sentences[0]) == 2  # in the verdict and in its section
    assert "This is conditional: valid only if the dense model never saw these rows." in said
    assert "No certificate has been computed" not in said
    assert "The certificate speaks of rows like those it was made from" in said
    for finding in made.findings:
        assert f"{100 * finding.bound:.1f}" in said
    assert "What untouched rows prove" not in text(render(config, result, metrics))
    words = verdict(result, made.to_json())
    assert f"Certificate: {made.sentences[0]} {made.sentences[1]}" in words
    assert "All but the certificate are point estimates" in words


@pytest.mark.parametrize("gap", fb.certificates.GAPS)
def test_every_gap_is_written(example_run, name_lists, gap):
    made = certificate(name_lists["digits"], gap)
    page = render(*example_run(), made.to_json())
    assert made.sentences[0] in text(page)
    assert page.count('<th scope="row">7') >= 1


def test_names_do_no_harm(example_run, name_lists):
    names = [n.encode("utf-8", "replace").decode() for n in name_lists["hostile"]]
    page = render(*example_run(names), certificate(names).to_json())
    assert "<script" not in page
    assert "<img" not in page
    assert "\u202e" not in page


@pytest.mark.parametrize("damaged", [{}, {"statement": "x"}, {"statement": ["a", "b"]}])
def test_a_damaged_certificate_does_not_break_the_page(example_run, damaged):
    broken = {**certificate(["a", "b"]).to_json(), "findings": 3, "overall": None, "claim": []}
    whole = render(*example_run(), None)
    for given in (damaged, broken):
        page = render(*example_run(), given)
        assert page.endswith("</html>\n") == whole.endswith("</html>\n")
        # Every section that needs no certificate is there as without one.
        assert set(re.findall("<h2[^>]*>[^<]*</h2>", whole)) <= set(
            re.findall("<h2[^>]*>[^<]*</h2>", page)
        )
        assert "Traceback" not in page
