"""What a network does to every group on a set of rows, as one typed object."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from fairbilevel import _display, _numbers
from fairbilevel.fairness._constraint import Constraint
from fairbilevel.fairness._metrics import gaps, measure, performance
from fairbilevel.fairness._statistics import Outcomes

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class GroupEvaluation:
    """A group's rows. Shares are fractions; what cannot be had (no rows) is ``None``.

    Attributes:
        rows: how many.
        counted: whether limits and claims speak of the group.
        accuracy: of the network.
        dense_accuracy: of the dense reference.
        excess: the excess accuracy gap: how much more accuracy the group loses than all rows do.
        lost: rows that the dense reference alone gets right.
        won: rows that the network alone gets right.
    """

    rows: int | None = None
    counted: bool = True
    accuracy: float | None = None
    dense_accuracy: float | None = None
    excess: float | None = None
    lost: int | None = None
    won: int | None = None

    @property
    def change(self) -> float | None:
        """Accuracy minus the dense reference's: below 0 the group loses."""
        if self.accuracy is None or self.dense_accuracy is None:
            return None
        return self.accuracy - self.dense_accuracy


@dataclass(frozen=True)
class Gap:
    """A disparity over the counted groups.

    Attributes:
        largest: a fraction; 0.02 is two points.
        group: the group that has it, or that is worst off.
    """

    largest: float | None = None
    group: str | None = None


@dataclass(frozen=True)
class Gaps:
    """Disparities of a network, beside the dense reference.

    Attributes:
        accuracy: largest minus smallest group accuracy.
        degradation: largest minus smallest loss of accuracy of a group.
        excess_accuracy: the most that a group loses beyond all rows' loss (Hashemizadeh et al.
            2024, section 3).
    """

    accuracy: Gap = Gap()
    degradation: Gap = Gap()
    excess_accuracy: Gap = Gap()


@dataclass(frozen=True)
class ConstraintEvaluation:
    """A constraint on a set of rows.

    Attributes:
        title: its name in words.
        unit: ``"points"`` (of a share), another, or empty.
        tolerance: the bound; ``None`` where groups have their own.
        value: what was measured, ``None`` if no group is claimed.
        violation: how far the bound is exceeded at most; at most 0 it holds.
    """

    title: str = ""
    unit: str = ""
    tolerance: float | None = None
    value: float | None = None
    violation: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bound holds; ``None`` where nothing was measured."""
        return None if self.violation is None else self.violation <= 1e-9


@dataclass(frozen=True)
class Evaluation:
    """A network on the rows of a role, beside the dense reference.

    ``evaluation.groups["women"].accuracy``, ``evaluation.gaps.excess_accuracy.largest``,
    ``evaluation.constraints["excess-accuracy-gap"].met``, ``evaluation.to_frame()``. What cannot be
    had is ``None``.

    Attributes:
        role: of the rows.
        rows: how many.
        accuracy: a fraction.
        loss: mean cross-entropy, in nats.
        dense_accuracy: of the dense reference on the same rows.
        groups: by name, in the order of the data.
        gaps: over the counted groups.
        constraints: by name.
        balanced_accuracy: mean over classes of the share of their rows that is right.
        majority_class: that most rows have: always answering it is right for ``majority_share``.
        majority_share: see there.
        commonest_answer: the class that the network answers most often, and for which share of the
            rows (``commonest_answer_share``).
        commonest_answer_share: see there.
    """

    role: str = ""
    rows: int | None = None
    accuracy: float | None = None
    loss: float | None = None
    dense_accuracy: float | None = None
    groups: dict[str, GroupEvaluation] = field(default_factory=dict)
    gaps: Gaps = Gaps()
    constraints: dict[str, ConstraintEvaluation] = field(default_factory=dict)
    balanced_accuracy: float | None = None
    majority_class: str | None = None
    majority_share: float | None = None
    commonest_answer: str | None = None
    commonest_answer_share: float | None = None

    @property
    def worst_group_accuracy(self) -> float | None:
        """The smallest accuracy of a counted group."""
        worst = self.gaps.accuracy.group
        return None if worst is None else self.groups[worst].accuracy

    def to_frame(self) -> pd.DataFrame:
        """A row a group, in the order of the data; columns as in ``GroupEvaluation``, and
        ``change``."""
        import pandas as pd  # its half second is for those who ask

        told = {n: dataclasses.asdict(g) | {"change": g.change} for n, g in self.groups.items()}
        columns = [*(f.name for f in dataclasses.fields(GroupEvaluation)), "change"]
        frame = pd.DataFrame.from_dict(told, orient="index", columns=columns)
        return frame.rename_axis("group")

    def _head(self) -> list[tuple[str, str]]:
        excess = self.gaps.excess_accuracy
        facts = [
            ("rows", "" if self.rows is None else f"{self.rows:,} of {self.role}"),
            ("accuracy", _numbers.percent(self.accuracy)),
            ("dense", "" if self.dense_accuracy is None else _numbers.percent(self.dense_accuracy)),
        ]
        if excess.group is not None and excess.largest is not None:
            said = f"{_numbers.points(excess.largest, 2)} points ({excess.group})"
            facts.append(("largest excess accuracy gap", said))
        for name, found in self.constraints.items():
            word = {True: "met", False: "not met", None: "not measured"}[found.met]
            facts.append((name, word))
        return [(name, said) for name, said in facts if said]

    def __repr__(self) -> str:
        return _display.line("Evaluation", *(f"{name} {said}" for name, said in self._head()))

    def _repr_html_(self) -> str:
        def points(value: float | None) -> str:
            return "" if value is None else _numbers.points(value, 2, signed=True)

        rows = [
            (
                name if group.counted else f"{name} †",
                f"{group.rows or 0:,}",
                "" if group.dense_accuracy is None else _numbers.percent(group.dense_accuracy),
                "" if group.accuracy is None else _numbers.percent(group.accuracy),
                points(group.change),
                points(group.excess),
            )
            for name, group in self.groups.items()
        ]
        below = "; ".join(f"{name}: {said}" for name, said in self._head())
        if not all(group.counted for group in self.groups.values()):
            below += ". † Reported only, outside every limit."
        head = ("group", "rows", "dense", "accuracy", "change, points", "beyond average, points")
        return _display.table(f"Evaluation on {self.role}", rows, head=head, below=below)


def evaluate(
    outcomes: Outcomes,
    group: Int[np.ndarray, " rows"],
    groups: Sequence[str],
    counted: Bool[np.ndarray, " groups"] | None = None,
    *,
    classes: Sequence[str] = (),
    constraints: Sequence[Constraint] = (),
    role: str = "",
) -> Evaluation:
    """What outcomes on a set of rows say of every group and constraint.

    Args:
        outcomes: of the rows, on the host.
        group: index into ``groups``.
        groups: names.
        counted: groups that limits and claims speak of; all by default.
        classes: names; with labels and answers in ``outcomes`` also what the accuracy is worth.
        constraints: to be measured.
        role: of the rows, for the reader.
    """
    use = np.ones(len(groups), bool) if counted is None else np.asarray(counted, bool)
    correct, dense = (np.asarray(o).astype(bool) for o in outcomes.paired[:2])
    told = performance(
        correct,
        np.asarray(outcomes.loss),
        group,
        groups,
        label=None if outcomes.label is None else np.asarray(outcomes.label),
        answer=None if outcomes.answer is None else np.asarray(outcomes.answer),
        classes=classes,
    )
    found = measure(constraints, outcomes, group, groups, use, len(classes) or None)
    return of_measures(
        told,
        performance(dense, np.asarray(outcomes.dense_loss), group, groups),
        gaps(dense, correct, group, groups, use),
        [name for name, claimed in zip(groups, use, strict=True) if claimed],
        constraints={
            c.name: ConstraintEvaluation(c.called, c.unit, c.common, m.value, m.violation)
            for c, m in zip(constraints, found, strict=True)
        },
        role=role,
    )


def of_measures(
    told: Mapping[str, Any],
    dense: Mapping[str, Any],
    apart: Mapping[str, Any],
    counted: Collection[str] | None,
    *,
    constraints: Mapping[str, ConstraintEvaluation],
    role: str,
) -> Evaluation:
    """One object of what was measured one by one.

    Args:
        told: ``performance`` of the network.
        dense: of the dense reference; empty where it is not known.
        apart: ``gaps``; what is missing is made of the accuracies.
        counted: groups that limits and claims speak of; ``None``: all.
        constraints: by name.
        role: of the rows.
    """
    own, before = (part.get("group_accuracy", {}) for part in (told, dense))
    sizes, flips = told.get("group_size", {}), apart.get("discordant", {})
    stated, overall = apart.get("excess_accuracy_gap", {}), _less(dense, told, "accuracy")

    def of_group(name: str) -> GroupEvaluation:
        lost, won = flips.get(name, (None, None))
        drop, excess = _less(before, own, name), stated.get(name)
        if excess is None and drop is not None and overall is not None:
            excess = drop - overall
        claimed = counted is None or name in counted
        size, accuracy = sizes.get(name), own.get(name)
        return GroupEvaluation(size, claimed, accuracy, before.get(name), excess, lost, won)

    groups = {name: of_group(name) for name in {**own, **sizes}}
    inside = {name: group for name, group in groups.items() if group.counted}
    worst = min((n for n in inside if own.get(n) is not None), key=own.__getitem__, default=None)
    damaged = [(group.excess, name) for name, group in inside.items() if group.excess is not None]
    hit = max(damaged, key=lambda found: found[0], default=(None, None))[1]
    worth = {f.name for f in dataclasses.fields(Evaluation)} & set(told)
    return Evaluation(
        role=role,
        rows=sum(sizes.values()) if sizes else None,
        dense_accuracy=dense.get("accuracy"),
        groups=groups,
        gaps=Gaps(
            Gap(apart.get("accuracy_gap"), worst),
            Gap(apart.get("degradation_gap"), hit),
            Gap(apart.get("max_excess_accuracy_gap"), hit),
        ),
        constraints=dict(constraints),
        **{name: told[name] for name in worth},
    )


def _less(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> float | None:
    one, other = before.get(name), after.get(name)
    return None if one is None or other is None else one - other
