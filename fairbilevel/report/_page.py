"""The page as a whole, and the file in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairbilevel._display import template
from fairbilevel._numbers import count, counted, points
from fairbilevel.records import (
    CERTIFICATE,
    CONFIG,
    EXPORT,
    MANIFEST,
    METRICS,
    PROFILE,
    RESULT,
    Result,
    read_json_lines,
    read_object,
    write_text,
)
from fairbilevel.report import charts
from fairbilevel.report._certificate import certificate_line, certificate_section
from fairbilevel.report._course import (
    cost_section,
    course_section,
    limits_section,
    origin_section,
    tradeoff_section,
)
from fairbilevel.report._parts import dig
from fairbilevel.report._sections import (
    groups_section,
    key_figures,
    layers_section,
    roles_section,
)
from fairbilevel.report._serving import precision_section, serving_section
from fairbilevel.report._verdict import judge


def render(
    config: dict[str, Any],
    result: Result,
    metrics: list[dict[str, Any]],
    certificate: dict[str, Any] | None = None,
    *,
    profile: dict[str, Any] | None = None,
    network: str | None = None,
    exports: Sequence[dict[str, Any]] = (),
    certificates: Sequence[dict[str, Any]] = (),
) -> str:
    """The report of one run as a self-contained HTML page.

    The page asks for nothing from outside and needs no JavaScript. Optional parts that are
    absent (baseline, constraints, progress lines, layers) leave out their section or column.

    Args:
        config: the run's options, from `config.json`.
        result: the run's outcome, from `result.json`.
        metrics: the run's progress lines, from `metrics.jsonl`, in the order written.
        certificate: from `certificate.json`, if one was made.
        profile: from `profile.json`, if one was made.
        network: SHA-256 of the pruned network, from `manifest.json`: a profile is of it or not
            shown.
        exports: from `export-*.json`, of files in lower precision.
        certificates: from `certificate-*.json`, those of such files among them.
    """
    model, data = result.model.name or "a model", result.data.name or "unnamed data"
    names = ["metrics.jsonl", "result.json"]
    names += ["certificate.json"] if certificate else []
    names += ["profile.json"] if profile else []
    names += [EXPORT] if exports else []
    return template("report/templates/page.html").render(
        count=count,
        counted=counted,
        points=points,
        title=f"Fair pruning of {model} on {data}",
        charts=charts,
        verdict=judge(result, certificate),
        keys=key_figures(result),
        warnings=[w[:1].upper() + w[1:] for w in result.warnings],
        groups=groups_section(result),
        certificate=certificate_section(certificate),
        certified=bool(certificate_line(certificate)),
        exports=precision_section(exports, certificates),
        roles=roles_section(result),
        course=course_section(result, metrics),
        layers=layers_section(result),
        tradeoff=tradeoff_section(result, metrics),
        serving=serving_section(profile, network),
        cost=cost_section(result),
        origin=origin_section(config, result),
        limits=limits_section(result),
        files=f"{', '.join(names[:-1])} and {names[-1]}",
    )


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into a run folder, from the JSON files that lie there; its path.

    Only `result.json` must be there; what the others would have said is left out.

    Raises:
        ValueError: `result.json` is missing or a file does not hold JSON.
    """
    run_dir = Path(run_dir)
    stored = run_dir / RESULT
    if not stored.is_file():
        raise ValueError(
            f"{run_dir} holds no result.json, so there is nothing to report; "
            "finish the run first, or name another run folder"
        )

    def found(name: str) -> dict[str, Any] | None:
        return read_object(run_dir / name) if (run_dir / name).is_file() else None

    def every(pattern: str) -> list[dict[str, Any]]:
        return [read_object(path) for path in sorted(run_dir.glob(pattern))]

    result = Result.from_json(read_object(stored), str(stored))
    lines = read_json_lines(run_dir / METRICS)
    exports = every(EXPORT)
    page = render(
        found(CONFIG) or {},
        result,
        [line for line in lines if isinstance(line, dict)],
        found(CERTIFICATE),
        profile=found(PROFILE),
        network=dig(found(MANIFEST), "sha256", "model/sparse.npz"),
        exports=exports,
        certificates=every("certificate-*.json") if exports else [],
    )
    path = run_dir / "report.html"
    write_text(path, page)
    return path
