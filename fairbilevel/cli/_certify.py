"""``fairbilevel certify`` and ``fairbilevel verify``."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
from rich.console import Console

from fairbilevel import _options
from fairbilevel._numbers import decimal, points
from fairbilevel.cli._parse import parse
from fairbilevel.cli._show import plain, say, table
from fairbilevel.records import CERTIFICATE

if TYPE_CHECKING:
    from fairbilevel.certificates import Certificate, Looks


@dataclass(frozen=True)
class Certify:
    """What rows that nothing has touched prove about gaps between groups. Exit code 0: the
    tolerance is certified; 3: it is violated; 4: these rows leave it undecided; 5: it is certified,
    but of groups with less than 95 % of the rows."""

    run: tyro.conf.Positional[Path | None] = None
    """Run folder; its certify rows are taken, or those of --data."""
    tolerance: str | None = None
    """The bound to certify, as 3% or 0.03; of worst-group-accuracy the floor."""
    gap: str = "excess-accuracy-gap"
    """excess-accuracy-gap, absolute-excess-accuracy-gap, degradation-gap, accuracy-gap,
    worst-group-accuracy,
    demographic-parity, equal-opportunity, equalized-odds, equalized-loss or
    equalized-loss-signed."""
    confidence: float = 0.95
    """Of everything that is ever certified from these rows together."""
    data: str | None = None
    """New data for a run, of the form it was made with."""
    artifact: Path | None = None
    """File written by fairbilevel export from this run: it answers in place of the run's pruned
    network, and the certificate names its digest."""
    split: str | None = None
    """Split of a TensorFlow data set."""
    predictions: Path | None = None
    """Instead of a run: a CSV with a row per example and columns y, dense, pruned and group."""
    y: str = "y"
    """Column of true classes in --predictions."""
    dense: str = "dense"
    """Column of the dense model's classes."""
    pruned: str = "pruned"
    """Column of the pruned model's classes."""
    group: str = "group"
    """Column of groups."""
    classes: str | None = None
    """All classes, commas between, where the labels of --predictions lack some that a model
    predicts."""
    unit: str | None = None
    """Column that names the person behind a row; by default `unit` if there is one."""
    id: str | None = None
    """Column of unique row ids, by which the ledger knows rows; by default `id` if there is one."""
    quantity: str | None = None
    """Column of the pruned model's loss (or another quantity) a row, for equalized-loss."""
    upper: float | None = None
    """Largest value of that quantity, for equalized-loss; a run's losses are clipped at it."""
    min_group_rows: int = 50
    """Groups of --predictions below this are named as outside the claim."""
    positive: str | None = None
    """Class whose rate is compared, for demographic-parity, equal-opportunity, equalized-odds."""
    bound: str = "sharp"
    """sharp, or simple (valid too for rows that are not identically distributed within a group);
    to be chosen before looking."""
    candidates: int = 1
    """Number of models, declared beforehand, that share this look at the rows."""
    only_look: bool = False
    """Spend the whole error now and close these rows for every later certificate."""
    dense_trained_on: str | None = None
    """What a given dense model was trained on, in words; without it the verdict is conditional."""
    ledger: Path | None = None
    """File that numbers the looks at these rows; by default ledger.json in the run folder, or
    beside the predictions."""
    out: Path | None = None
    """Where the certificate goes; by default certificate.json in the run folder, or beside the
    predictions."""
    as_given: bool = False
    """Take columns of --predictions as they are, though they look mistaken for one another."""
    json: bool = False
    """Print the certificate as JSON."""


@dataclass(frozen=True)
class Verify:
    """Compute a certificate again from the counts in it, and say whether it is the same. What only
    its digest vouches for (claim, counts, context) is made again where the source is given."""

    certificate: tyro.conf.Positional[Path]
    """A certificate.json."""
    run: Path | None = None
    """The run it is of: the counts are made again from its certify rows, or those of --data."""
    data: str | None = None
    """The new data that the run was certified on."""
    artifact: Path | None = None
    """The file that answered in place of the run's pruned network."""
    predictions: Path | None = None
    """The predictions it is of, with columns y, dense, pruned and group."""


def certify(words: list[str], console: Console) -> int:
    """Certify, write the certificate and say its verdict, also as exit code."""
    options = parse(Certify, "certify", words)
    if (options.run is None) == (options.predictions is None):
        raise ValueError("certify wants a run folder, or --predictions FILE.csv: one of the two")
    if options.tolerance is None:
        raise ValueError("certify wants a --tolerance, such as 3%")
    claim: dict[str, Any] = {
        "gap": options.gap,
        "tolerance": _tolerance(options.gap, options.tolerance),
        "confidence": options.confidence,
        "bound": options.bound,
        "positive": options.positive,
        "upper": options.upper,
    }
    from fairbilevel.certificates import LEDGER, Claim, Looks

    ledger = options.ledger
    if ledger is None and options.predictions is not None:
        ledger = options.predictions.parent / LEDGER
    looks = Looks(only=options.only_look, candidates=options.candidates, ledger=ledger)
    Claim(**{k: claim[k] for k in ("gap", "tolerance", "confidence", "bound", "upper")})
    if options.run is not None:
        certificate, path = _of_run(options, claim, looks)
    else:
        certificate, path = _of_predictions(options, claim, looks)
    certificate.save(path)
    if options.run is not None and path.parent == options.run:
        from fairbilevel import report

        report.write_report(options.run)
    if options.json:
        print(json.dumps(certificate.to_json(), indent=2, ensure_ascii=False))
    else:
        _show(console, certificate)
        say(console, f"certificate: {path}")
    return certificate.exit_code


def verify(words: list[str], console: Console) -> int:
    """Run ``fairbilevel verify``: 0 the same, 1 different."""
    options = parse(Verify, "verify", words)
    from fairbilevel.certificates import CHECKED, differences
    from fairbilevel.certificates import verify as compute_again

    certificate, places = compute_again(options.certificate)
    checked = dict(CHECKED)
    again = "computed again from its counts"
    if options.run is not None or options.predictions is not None:
        again = "computed again from its source"
        source = _again(options, certificate)
        places += [
            place
            for place in differences(source, certificate.to_json())
            if place.split(".")[0] in ("claim", "counts", "context") or "[" in place
        ]
        checked = {"computed again from the source": CHECKED["against its digest"], **checked}
        del checked["against its digest"]
    if places:
        places = list(dict.fromkeys(places))
        shown = ", ".join(places[:8]) + (" ..." if len(places) > 8 else "")
        say(console, f"different: {again}, {shown} do not agree with the file.")
        return 1
    said = "; ".join(f"{how}: {', '.join(names)}" for how, names in checked.items())
    say(console, f"same: {certificate.verdict}. {certificate.sentences[0]}")
    say(console, f"({said}. Nothing here tells who wrote it.)")
    return 0


def _again(options: Verify, certificate: Certificate) -> dict[str, Any]:
    """The certificate that run or predictions give for the same claim at the same look."""
    from fairbilevel.certificates import Looks

    claim = certificate.claim.to_json()
    name = claim.pop("quantity")
    number, only, candidates = (claim.pop(k) for k in ("look", "only_look", "candidates"))
    looks = Looks(number=number, only=only, candidates=candidates)
    trained_on = certificate.context.dense_trained_on
    if options.run is not None:
        asked = Certify(
            options.run, data=options.data, artifact=options.artifact, dense_trained_on=trained_on
        )
        made, _ = _of_run(asked, claim, looks, again=True)
    else:
        assert options.predictions is not None
        columns = Certify(
            predictions=options.predictions, as_given=True, dense_trained_on=trained_on
        )
        if claim["upper"] is not None:
            columns = replace(columns, quantity=name)
        made, _ = _of_predictions(columns, claim, looks)
    found = made.to_json()
    # What the ledger told belongs to the look, which is not taken again.
    for part in ("looks_counted", "notes"):
        found["context"][part] = certificate.to_json()["context"][part]
    return found


def _tolerance(gap: str, text: str) -> float:
    from fairbilevel.certificates import FLOOR, OF_QUANTITIES
    from fairbilevel.fairness import parse_tolerance

    if gap in OF_QUANTITIES and not text.strip().endswith("%"):
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"a tolerance of {gap} is a number, got {text!r}") from None
    # No accuracy exceeds 1, so a floor of 1 is no percentage.
    return 1.0 if gap == FLOOR and text.strip() in ("1", "1.0") else parse_tolerance(text)


def _of_run(
    options: Certify, claim: dict[str, Any], looks: Looks, *, again: bool = False
) -> tuple[Certificate, Path]:
    from fairbilevel.certificates import certificate_name
    from fairbilevel.deploy import read_artifact
    from fairbilevel.run import certify_run, load_run

    assert options.run is not None
    run = load_run(options.run)
    certificate = certify_run(
        run,
        artifact=None if options.artifact is None else read_artifact(options.artifact),
        data=options.data,
        split=options.split,
        dense_trained_on=options.dense_trained_on,
        looks=looks,
        again=again,
        **claim,
    )
    # Of the run's own rows and network there is one file; of others one for each question.
    given = [Path(p).name for p in (options.artifact, options.data) if p is not None]
    name = certificate_name("-".join(given), certificate) if given else CERTIFICATE
    return certificate, options.out or options.run / name


def _of_predictions(
    options: Certify, claim: dict[str, Any], looks: Looks
) -> tuple[Certificate, Path]:
    from fairbilevel.certificates import Origin
    from fairbilevel.certificates import certify as certify_rows

    path = options.predictions
    assert path is not None
    for name in ("data", "split", "artifact"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} belongs to a run, not to --predictions")
    columns = _read(path, options)
    origin = Origin(
        data=path.name,
        pruned_model=_model(columns.pop("model", None)),
        dense_trained_on=options.dense_trained_on,
    )
    certificate = certify_rows(
        columns["y"],
        columns["dense"],
        columns["pruned"],
        columns["group"],
        unit=columns.get("unit"),
        ids=columns.get("id"),
        classes=None if options.classes is None else options.classes.split(","),
        quantity=columns.get("quantity"),
        quantity_name=options.quantity or "loss",
        min_group_rows=options.min_group_rows,
        as_given=options.as_given,
        looks=looks,
        origin=origin,
        **claim,
    )
    return certificate, options.out or path.with_suffix(f".{CERTIFICATE}")


def _read(path: Path, options: Certify) -> dict[str, np.ndarray]:
    """Columns of a predictions file by what they are for."""
    from fairbilevel.data import read_table

    if not path.exists():
        raise ValueError(f"there is no file {path}")
    read = read_table(path)
    rows = read.table
    wanted = {k: getattr(options, k) for k in ("y", "dense", "pruned", "group", "quantity")}
    for name in ("unit", "id", "model"):
        wanted[name] = getattr(options, name, None) or (name if name in rows.columns else None)
    found = {}
    for use, name in wanted.items():
        if name is None:
            continue
        if name not in rows.columns:
            known = _options.choose(name, list(rows.columns))
            raise ValueError(f"{path} has no column {name!r} for --{use}: {known}")
        missing = rows[name].isna().to_numpy()
        if missing.any():
            first = read.lines[int(missing.argmax())]
            raise ValueError(
                f"column {name!r} of {path} is empty in {int(missing.sum())} rows (the first is "
                f"line {first})"
            )
        found[use] = rows[name].to_numpy()
    return found


def _model(column: np.ndarray | None) -> str | None:
    """The digest of what made the predictions, where one file made them all and they say so."""
    digests = set() if column is None else {str(value) for value in column}
    (digest,) = digests if len(digests) == 1 else ("",)
    return digest.removeprefix("sha256:") if digest.startswith("sha256:") else None


def _show(console: Console, certificate: Certificate) -> None:
    from fairbilevel.certificates import amount

    claim = certificate.claim
    smallest = certificate.smallest_tolerance
    floor = claim.gap == "worst-group-accuracy"
    what = "Largest certified floor" if floor else "Smallest certified tolerance"
    value = "none" if smallest is None else amount(claim, smallest)
    lines = [
        f"{what}: {value}",
        f"Verdict: {certificate.verdict}" + (" (conditional)" if certificate.conditional else ""),
        *certificate.sentences,
        *certificate.context.notes,
        f"Look {claim.look} at these rows"
        + (f", one of {claim.candidates} candidates" if claim.candidates > 1 else "")
        + f": error spent {claim.delta:.4f}.",
    ]
    for i, line in enumerate(lines):
        say(console, line, "bold" if i < 2 else None)
    bounds = table(["group"], ["rows", "estimate", "interval", "own verdict"])
    losses = claim.gap in ("equalized-loss", "equalized-loss-signed")
    written = partial(decimal if losses else points, decimals=2, signed=True)
    shown = certificate.findings
    if len(shown) > 40:
        shown = tuple(sorted(shown, key=lambda f: -(f.bound or f.high)))[:20]
    for f in shown:
        name = f.group if f.label is None else f"{f.group} ({f.label})"
        estimate, low, high = map(written, (f.estimate, f.low, f.high))
        bounds.add_row(plain(name), f"{f.rows:,}", estimate, f"{low} to {high}", f.verdict)
    console.print(bounds, highlight=False)
    if len(shown) < len(certificate.findings):
        console.print(
            f"({len(certificate.findings) - len(shown)} groups with lower bounds not shown)"
        )
