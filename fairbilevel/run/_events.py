"""``events.jsonl``: when a run began, was interrupted, went on and ended."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from fairbilevel.records import EVENTS, JsonLines, RecordError, read_json_lines


class Events:
    """The events of one run folder; what is there is never written over.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self._path = folder / EVENTS

    def write(self, event: str, **more: Any) -> None:
        """Append an event with the time, UTC."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        lines = JsonLines(self._path, append=True)
        try:
            lines.write({"time": now, "event": event, **more})
        finally:
            lines.close()

    def first(self, name: str) -> Any:
        """An entry of the first event, ``None`` where there is none."""
        try:
            found = read_json_lines(self._path)
        except RecordError:
            return None
        return found[0].get(name) if found and isinstance(found[0], dict) else None
