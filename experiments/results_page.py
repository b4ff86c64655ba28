"""The page of results, ``docs/results.md``: of every experiment what it asks and what it wrote.

    python -m experiments.results_page

Words that stand in no result file are here; tables and sentences with numbers are taken from the
files below ``results/`` as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments import _write
from experiments._presets import PRESETS
from experiments._write import RESULTS
from fairbilevel.records import write_text

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
Pick = Callable[[str], str]


@dataclass(frozen=True)
class Asked:
    """One experiment.

    Attributes:
        title: heading.
        words: what it asks, and what its files do not say.
        shown: below ``results/``, and which part of it is shown; the first one is linked as the
            whole.
        also: title and file of further pages to link.
        stale: whether it was made before the engine was rebuilt.
        after: words behind what is shown.
    """

    title: str
    words: str
    shown: dict[str, Pick]
    also: dict[str, str]
    stale: bool = False
    after: str = ""

    def text(self) -> str:
        """Markdown, with links as from the page."""
        links = {"all of it": next(iter(self.shown)), **self.also}
        told = ", ".join(f"[{name}](../experiments/results/{p})" for name, p in links.items())
        parts = [pick((RESULTS / path).read_text()) for path, pick in self.shown.items()]
        dagger = " †" if self.stale else ""
        blocks = (f"## {self.title}{dagger}", f"{self.words} See {told}.", *parts, self.after)
        return _write.page(*blocks).rstrip()


def body(text: str) -> str:
    """All but the title and the line that says how it was made; headings a level deeper."""
    lines = [line for line in text.splitlines()[1:] if not line.startswith("Made by ")]
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines).strip()


def opening(text: str) -> str:
    """The first paragraph."""
    return body(text).split("\n\n")[0]


def table(text: str) -> str:
    """The first table."""
    found = re.search(r"^\|.*?(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[0].rstrip()


def sentences(text: str) -> str:
    """What was read off the tables, with the headings above it."""
    lines = [line for line in body(text).splitlines() if line.startswith(("- ", "**", "#"))]
    kept = [
        line
        for i, line in enumerate(lines)
        if line.startswith("- ") or (i + 1 < len(lines) and lines[i + 1].startswith("- "))
    ]
    return "\n".join(line if line.startswith("- ") else f"\n{line}\n" for line in kept).strip()


def below(heading: str) -> Pick:
    """What stands behind a heading."""
    return lambda text: text.partition(f"\n{heading}\n")[2].strip()


def until(heading: str, pick: Pick) -> Pick:
    """What stands before a heading."""
    return lambda text: pick(text[: text.index(f"\n{heading}")])


def asked() -> list[Asked]:
    """All experiments, in the order of the page."""
    planned = PRESETS["claim"]["small"]
    settings = [name for name in planned if (RESULTS / f"claim/{name}/table.md").is_file()]
    systems = {"digits": "digits", "UTKFace": "utkface", "CelebA": "celeba"}
    return [
        Asked(
            "The claim",
            "The solver beside five rivals, as published and with its training parts, on folds "
            f"that no choice was made on: {len(settings)} settings of {len(planned)} so far. With the start of scores that the solver "
            "had when the table of filters was first made it was ten points behind SynFlow. "
            "Nothing is claimed.",
            {"claim/reading.md": body},
            {name: f"claim/{name}/table.md" for name in settings},
        ),
        Asked(
            "The demo over ten seeds",
            "What `make demo` runs, with other seeds: is the solver as accurate as gradual "
            "magnitude pruning, and as quick?",
            {"demo.md": until("- command", body)},
            {},
        ),
        Asked(
            "Hypergradients in gradients",
            "What each method costs, beside jaxopt, on a residual network and on an MLP; "
            "[error against cost](hypergradients.md) stands with the guide.",
            {"bench_hypergradient_resnet10.md": table, "bench_hypergradient_mlp.md": table},
            {"MLP": "bench_hypergradient_mlp.md"},
        ),
        Asked(
            "Certificates",
            "Errors in least favourable worlds, and what the sharp bound saves.",
            {"certificate_validity.md": until("Each world alone", body)},
            {},
        ),
        Asked(
            "All methods",
            "Small networks, short budgets (200 to 300 gradient evaluations), the same dense model "
            "in each fold.",
            {
                "systems/reading.md": until(
                    "- digits, ", lambda t: t[t.index("| method |") :].strip()
                )
            },
            {name: f"systems/{folder}/table.md" for name, folder in systems.items()},
            stale=True,
            after="In plain words: on digits and on CelebA nearly everything works and nearly "
            "nobody is harmed, beyond random masks, GraSP and lottery tickets, which such short "
            "training cannot repair. On UTKFace pruning costs three points or more and costs "
            "groups differently. There HYDRA and gradual magnitude pruning (also under CEAG or "
            "equalized loss) keep the most accuracy; CEAG, the two-stage patterns, HYDRA and "
            "reweighting leave the evenest losses. **The bilevel solver does not win here**: at so "
            "few evaluations the half that it spends on the mask is missing in the weights. Its "
            "gains over gradual magnitude pruning came with two thousand. Three folds are an "
            "impression, not a ranking. With half of the filters removed instead (second table of "
            "all of it) little is lost anywhere but by lottery tickets, and on UTKFace by the "
            "penalty and by BiFP's constraint on the weights, which also harm groups most unevenly "
            "there.",
        ),
        Asked(
            "Balancing Act",
            "Excess accuracy gaps of constrained pruning on train and on test, at 95 %, five folds "
            "each, where two points were asked; no difference from naive pruning passes a test.",
            {"balancing_act/reading.md": sentences},
            {},
            stale=True,
        ),
        Asked(
            "The hypergradient's implicit term",
            "Does it pay at equal gradient evaluations? Tables have 20 repetitions; UTKFace has 5 "
            "folds, which prove nothing.",
            {"hypergradient_ablation/reading.md": sentences},
            {},
            stale=True,
        ),
        Asked(
            "Disparate impact",
            "Why pruning hurts some groups more than others, five folds each, and what equal "
            "losses enforced before or after pruning change.",
            {"disparate_impact/disparate_impact.md": sentences},
            {},
            stale=True,
        ),
        Asked(
            "BiFP on CelebA",
            "Fairness and pruning in one run, beside two stages and beside masks or weights "
            "without their constraint; five folds.",
            {"bifp/reading.md": sentences},
            {},
            stale=True,
        ),
        Asked(
            "What an outer step sends, and what it holds",
            "Collectives and their bytes on four devices; memory of ResNet-50 beside plain "
            "training.",
            {"bench_devices.md": table, "bench_memory.md": table},
            {"memory": "bench_memory.md"},
            stale=True,
        ),
        Asked(
            "Killed at random moments",
            "Do runs that were killed and gone on with end the same?",
            {"crash_safety.md": opening},
            {},
        ),
        Asked(
            "Loops on CPU",
            "What the canonical convolution layout is for.",
            {"bench_loops.md": until("Made by", body)},
            {},
        ),
        Asked(
            "Rows out of core, and programs",
            "Steps a second on rows that are read batch by batch; what a solve on the digits "
            "compiles, cold and in the next process.",
            {"bench_feeding.md": table, "bench_compile.md": table},
            {"programs": "bench_compile.md"},
        ),
    ]


def made() -> str:
    """The page."""
    return _write.page(
        "# Results",
        "Tables and sentences with numbers are those of the files below `experiments/results/`, put "
        "together by `python -m experiments.results_page`. The files are written by the modules in "
        "`experiments/`, each with the command, the versions and the machine it ran on; nothing in "
        "them is copied by hand.",
        "**Stale until they are made again: what is marked †.** It was made before the engine was "
        "rebuilt. Early stopping could then keep the most damaged network, multipliers were dead "
        "at short budgets, and the solver took about six weight updates where its rivals took ten; "
        "it has changed too (one batch for both levels, no refreshed statistics). What these "
        "tables say of the solver, and of methods under constraints, is not what you would see "
        "today.",
        *(each.text() for each in asked()),
    )


if __name__ == "__main__":
    write_text(PAGE, made())
