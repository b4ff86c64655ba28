"""The certificate: a claim, the counts, and what follows from them; written, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from fairbilevel import _display, _numbers
from fairbilevel.certificates import _claim as gaps
from fairbilevel.certificates import _words as words
from fairbilevel.certificates._claim import Claim, Context
from fairbilevel.certificates._counts import GroupCounts
from fairbilevel.certificates._judge import (
    CERTIFIED,
    PARTIAL,
    UNDECIDED,
    VIOLATED,
    Finding,
    Judgement,
    judge_excess,
    judge_floor,
    judge_spread,
)
from fairbilevel.certificates._ledger import digest
from fairbilevel.certificates._power import rows_needed
from fairbilevel.certificates._samples import Paired, Quantity, Rate, Sample
from fairbilevel.records import write_json

SCHEMA_VERSION = 2
EXIT_CODES = {CERTIFIED: 0, VIOLATED: 3, UNDECIDED: 4, PARTIAL: 5}
# A claim that is silent on more than this share of the rows is no claim about them.
_MOST_SILENT = 0.05

_MOST_SHOWN = 20  # groups in a notebook


@dataclass(frozen=True)
class Certificate:
    """What held-out rows prove about gaps between groups.

    Attributes:
        claim: what was asked.
        groups: the counts.
        context: where rows and models come from.
    """

    claim: Claim
    groups: tuple[GroupCounts, ...]
    context: Context = field(default_factory=Context)

    def __post_init__(self) -> None:
        claimed = [g for g in self.groups if g.claimed]
        if len({g.group for g in self.groups}) < len(self.groups):
            raise ValueError("two groups have the same name")
        if not claimed:
            raise ValueError(
                "no group is large enough to say anything of: lower the limit or merge"
            )
        if len(self.groups) < 2 and self.claim.gap != gaps.FLOOR:
            raise ValueError("a gap needs at least two groups, the rows have one")
        apart = self.claim.gap not in (gaps.EXCESS, gaps.EXCESS_TWO_SIDED, *gaps.OF_QUANTITIES)
        if apart and len(claimed) < 2 and self.claim.gap != gaps.FLOOR:
            raise ValueError(f"{self.claim.gap} compares groups, and a single one is large enough")
        if not sum(g.rows for g in self.groups):
            raise ValueError("there are no rows to certify from")
        if self.claim.gap in gaps.OF_QUANTITIES and (
            self.claim.upper is None or any(g.quantity is None for g in self.groups)
        ):
            raise ValueError(
                f"{self.claim.gap} is not certifiable without a declared range: an unbounded loss "
                "can hide any mean in rare rows, so clip it and say at what value"
            )
        if self.claim.gap in gaps.OF_ANSWERS and (
            self.claim.positive is None or any(g.positive_rows is None for g in self.groups)
        ):
            raise ValueError(f"{self.claim.gap} needs a positive class")

    def _title(self) -> str:
        bound = self.smallest_tolerance
        limit = words.amount(self.claim, self.claim.tolerance, exact=True)
        smallest = "nothing" if bound is None else words.amount(self.claim, bound)
        word = "floor" if self.claim.gap == gaps.FLOOR else "tolerance"
        return (
            f"{self.claim.gap}, {word} {limit}: {self.verdict}"
            f"{' (conditional)' if self.conditional else ''}; {smallest} proven"
            f" with {_numbers.share(self.claim.confidence)} confidence"
        )

    def __repr__(self) -> str:
        rows = _numbers.counted(sum(g.rows for g in self.groups), "row")
        groups = f"{rows} in {_numbers.counted(len(self.groups), 'group')}"
        return _display.line("Certificate", self._title(), groups)

    def __str__(self) -> str:
        return self.sentence

    def _repr_html_(self) -> str:
        shown = sorted(self.findings, key=lambda f: -(f.bound or f.high))[:_MOST_SHOWN]
        left_out = len(self.findings) - len(shown)

        written = partial(_numbers.decimal, decimals=4, signed=True)
        rows = [
            (
                f.group if f.label is None else f"{f.group} ({f.label})",
                f"{f.rows:,}",
                written(f.estimate),
                f"{written(f.low)} to {written(f.high)}",
                f.verdict,
            )
            for f in shown
        ]
        more = f" {_numbers.counted(left_out, 'group')} more are not shown." if left_out else ""
        head = ("group", "rows", "estimate", "interval", "verdict")
        return _display.table(
            f"Certificate: {self._title()}", rows, head=head, below=self.sentence + more
        )

    @property
    def claimed(self) -> list[str]:
        """Groups that the claim speaks of."""
        return [g.group for g in self.groups if g.claimed]

    @property
    def small(self) -> list[str]:
        """Groups outside the claim."""
        return [g.group for g in self.groups if not g.claimed]

    @cached_property
    def judgement(self) -> Judgement:
        """Bounds and verdicts."""
        claim, delta = self.claim, self.claim.delta
        if claim.gap in (gaps.EXCESS, gaps.EXCESS_TWO_SIDED, *gaps.OF_QUANTITIES):
            samples = self._quantities() if claim.gap in gaps.OF_QUANTITIES else self._paired()
            two_sided = claim.gap in (gaps.EXCESS_TWO_SIDED, gaps.LOSS)
            return judge_excess(samples, self.claimed, claim.tolerance, delta, two_sided=two_sided)
        if claim.gap == gaps.FLOOR:
            rates = {g.group: Rate(g.pruned_right, g.rows) for g in self.groups}
            return judge_floor(rates, self.claimed, claim.tolerance, delta)
        return judge_spread(self._layers(), self.claimed, claim.tolerance, delta)

    def _paired(self) -> dict[str, Paired]:
        bound = self.claim.bound
        return {g.group: Paired(g.lost, g.won, g.rows, bound) for g in self.groups}

    def _quantities(self) -> dict[str, Quantity]:
        found = {}
        for g in self.groups:
            assert g.quantity is not None
            assert self.claim.upper is not None
            found[g.group] = Quantity(g.quantity, g.quantity_total or 0.0, 0.0, self.claim.upper)
        return found

    def _layers(self) -> dict[str | None, dict[str, Sample]]:
        gap = self.claim.gap
        if gap == gaps.DEGRADATION:
            return {None: dict(self._paired())}
        if gap == gaps.ACCURACY:
            return {None: {g.group: Rate(g.pruned_right, g.rows) for g in self.groups}}
        right: dict[str, Sample] = {}
        wrong: dict[str, Sample] = {}
        either: dict[str, Sample] = {}
        for g in self.groups:
            p, tp, fp = (g.positive_rows or 0, g.positive_answers or 0, g.negative_answers or 0)
            right[g.group], wrong[g.group] = Rate(tp, p), Rate(fp, g.rows - p)
            either[g.group] = Rate(tp + fp, g.rows)
        if gap == gaps.PARITY:
            return {None: either}
        label = str(self.claim.positive)
        return {label: right, f"not {label}": wrong} if gap == gaps.ODDS else {label: right}

    @property
    def silent_share(self) -> float:
        """Share of the rows that are of groups outside the claim."""
        silent = sum(g.rows for g in self.groups if not g.claimed)
        return silent / sum(g.rows for g in self.groups)

    @property
    def verdict(self) -> str:
        """``certified``, ``violated``, ``undecided``, or ``partial``: certified of the claimed
        groups, where the claim is silent on more than 5 % of the rows."""
        found = self.judgement.verdict
        return PARTIAL if found == CERTIFIED and self.silent_share > _MOST_SILENT else found

    @property
    def smallest_tolerance(self) -> float | None:
        """Smallest tolerance these rows certify (largest floor): itself a bound."""
        found = self.judgement.smallest_tolerance
        return None if found is None else max(found, 0.0)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of every claimed group."""
        return self.judgement.findings

    @property
    def conditional(self) -> bool:
        """Whether the verdict rests on what nobody has shown: that the models have not seen these
        rows, or that rows and columns are what they are called."""
        context = self.context
        return context.dense_trained_on is None or context.alike > 0 or bool(context.doubts)

    @property
    def exit_code(self) -> int:
        """0 certified, 3 violated, 4 undecided, 5 partial."""
        return EXIT_CODES[self.verdict]

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The certificate in words."""
        said = words.sentences(self)
        more = self.more_rows
        if self.verdict == UNDECIDED and more is not None:
            said = (*said[:2], more["sentence"], *said[2:])
        return said

    @property
    def sentence(self) -> str:
        """The certificate in one paragraph."""
        return " ".join(self.sentences)

    @cached_property
    def more_rows(self) -> dict[str, Any] | None:
        """How many rows would decide, for the excess accuracy gap left undecided."""
        if self.claim.gap != gaps.EXCESS or self.verdict != UNDECIDED:
            return None
        worst = max(self.findings, key=lambda f: f.bound or 0.0)
        samples = self._paired()
        others = [s for name, s in samples.items() if name != worst.group]
        rest = others[0].pool(others[1:])
        return rows_needed(
            worst.group, samples[worst.group], rest, self.claim.tolerance, self.claim.delta
        )

    @cached_property
    def overall(self) -> dict[str, Any]:
        """Bounds that go with every certificate, each a statement by itself at the same error.

        The loss of accuracy over all rows; every group's accuracy, dense and pruned (intervals that
        hold for all groups of a model together); how far the claimed groups' accuracies lie apart.
        """
        delta = self.claim.delta
        rows = sum(g.rows for g in self.groups)
        lost, won = sum(g.lost for g in self.groups), sum(g.won for g in self.groups)
        everybody = Paired(lost, won, rows, "simple")
        found: dict[str, Any] = {"rows": rows, "accuracy_lost": _interval(everybody, delta / 2)}
        for model in ("dense", "pruned"):
            right = {g.group: getattr(g, f"{model}_right") for g in self.groups}
            rates = {g.group: Rate(right[g.group], g.rows) for g in self.groups}
            level = delta / (2 * len(rates))
            found[f"{model}_accuracy"] = {
                "estimate": sum(right.values()) / rows,
                "groups": {name: _interval(rate, level) for name, rate in rates.items()},
            }
            apart = {name: (r.lower(delta / 2), r.upper(delta / 2)) for name, r in rates.items()}
            pairs = [(g, h) for g in self.claimed for h in self.claimed if g != h]
            found[f"{model}_accuracy_gap_bound"] = max(
                (apart[g][1] - apart[h][0] for g, h in pairs), default=None
            )
        return found

    def derived(self) -> dict[str, Any]:
        """Everything that follows from claim and counts."""
        return {
            "smallest_tolerance": self.smallest_tolerance,
            "verdict": self.verdict,
            "findings": [asdict(f) for f in self.findings],
            "overall": self.overall,
            "more_rows": self.more_rows,
            "levels": {
                "delta": 1 - self.claim.confidence,
                "look": self.claim.look,
                "only_look": self.claim.only_look,
                "candidates": self.claim.candidates,
                "spent": self.claim.delta,
            },
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values from which the certificate can be computed again."""
        found = self.derived()
        return {
            "schema_version": SCHEMA_VERSION,
            "smallest_tolerance": found.pop("smallest_tolerance"),
            "verdict": found.pop("verdict"),
            "conditional": self.conditional,
            "digest": self.digest,
            "statement": list(self.sentences),
            "claim": self.claim.to_json(),
            **found,
            "counts": [g.to_json() for g in self.groups],
            "outside_the_claim": self.small,
            "context": self._told(),
        }

    @property
    def digest(self) -> str:
        """SHA-256 in hex of claim, counts and context: it shows that one of them was edited by
        itself, not who wrote them."""
        return digest([self.claim.to_json(), [g.to_json() for g in self.groups], self._told()])

    def _told(self) -> dict[str, Any]:
        context = self.context
        return {
            **asdict(context), "left_out": dict(context.left_out), "doubts": list(context.doubts),
            "notes": list(context.notes),
        }  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write ``certificate.json``, whole or not at all."""
        path = Path(path)
        write_json(path, self.to_json())
        return path

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Certificate:
        """A certificate from its claim and counts; what was derived is derived again.

        Raises:
            ValueError: not a certificate, or counts that contradict each other.
        """
        version = values.get("schema_version")
        if not isinstance(version, int) or "claim" not in values or "counts" not in values:
            raise ValueError("this is no certificate: it has no schema_version, claim and counts")
        if version < SCHEMA_VERSION:
            raise ValueError(
                f"the certificate was written with schema {version}, by a version of fairbilevel "
                "with other bounds and without digests: certify again"
            )
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"the certificate was written with schema {version}, this version of fairbilevel "
                f"reads up to {SCHEMA_VERSION}: upgrade it"
            )
        try:
            claim = Claim(**values["claim"])
            context = Context(**values.get("context", {}))
        except TypeError as error:
            raise ValueError(f"the certificate is malformed: {error}") from None
        return Certificate(claim, tuple(map(GroupCounts.from_json, values["counts"])), context)


def _interval(sample: Sample, level: float) -> dict[str, float | None]:
    low, high = sample.lower(level), sample.upper(level)
    return {"estimate": sample.estimate, "low": low, "high": high}
