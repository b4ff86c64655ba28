"""The report's functions on results as files hold them: those here are of schema 1, which has to be
read for as long as there are such folders."""

from __future__ import annotations

from typing import Any

from fairbilevel import report
from fairbilevel.records import Result


def read(result: dict[str, Any]) -> Result:
    return Result.from_json({**result, "schema_version": 1})


def render(
    config: dict[str, Any],
    result: dict[str, Any],
    metrics: list[dict[str, Any]],
    *certificate: Any,
    **more: Any,
) -> str:
    return report.render(config, read(result), metrics, *certificate, **more)


def judge(result: dict[str, Any], certificate: dict[str, Any] | None = None) -> Any:
    return report.judge(read(result), certificate)


def verdict(result: dict[str, Any], certificate: dict[str, Any] | None = None) -> str:
    return report.verdict(read(result), certificate)


def summary_table(result: dict[str, Any]) -> Any:
    return report.summary_table(read(result))
