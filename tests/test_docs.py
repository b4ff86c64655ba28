"""What the guides print is what a reader can run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "page", ["docs/devices.md", "docs/disparate_impact.md", "docs/hypergradients.md"]
)
def test_the_code_of_a_guide_runs(page, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})
    assert "DONE" in capsys.readouterr().out


def test_the_main_table_is_the_one_that_the_experiment_wrote():
    reading = (ROOT / "experiments/results/systems/reading.md").read_text()
    table = reading[reading.index("| method |") : reading.index("\n- digits")].strip()
    assert len(table.splitlines()) > 25
    assert table in (ROOT / "README.md").read_text()
