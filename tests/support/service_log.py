"""A service's log, read as it grows: JSON lines, and whatever else the process printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Line = dict[str, Any]

_COMPLAINTS = ("error", "critical")


class ServiceLog:
    """Each call reads what has been added since the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._lines: list[Line] = []
        self._strays: list[str] = []

    def lines(self, event: str | None = None, **fields: object) -> list[Line]:
        """The lines of an event (or all), of which these fields have these values."""
        self._read()
        wanted = {**fields, "event": event} if event else fields
        return [line for line in self._lines if all(line.get(name) == value for name, value in wanted.items())]

    def complaints(self) -> list[object]:
        """Lines at the level of an error or above, and output that is no JSON, such as a traceback."""
        return [*(line for line in self.lines() if line.get("level") in _COMPLAINTS), *self._strays]

    def _read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as log:
            log.seek(self._offset)
            added = log.read()
        # A line that is still being written is left for the next call.
        complete = added[: added.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.decode(errors="replace").splitlines():
            self._take(line)

    def _take(self, line: str) -> None:
        if line.startswith("{"):
            self._lines.append(json.loads(line))
        elif line:
            self._strays.append(line)
