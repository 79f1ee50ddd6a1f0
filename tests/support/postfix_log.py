"""Postfix's log, read as it grows: what became of each recipient of each queued message."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_ATTEMPT = re.compile(
    r" postfix/[\w/-]+\[\d+\]: (?P<queue_id>\w+): to=<(?P<recipient>[^>]*)>, .*?relay=(?P<relay>[^ ]+), "
    r".*?dsn=(?P<dsn>[\d.]+), status=(?P<status>\w+) \((?P<reply>.*)\)$",
)
_REMOVED = re.compile(r" postfix/qmgr\[\d+\]: (?P<queue_id>\w+): removed$")
_COMPLAINT = re.compile(r" postfix/[\w/-]+\[\d+\]: (?:warning|error|fatal|panic): ")


@dataclass(frozen=True)
class Attempt:
    """One attempt to deliver one message to one recipient.

    `status` is sent, deferred or bounced; `reply` what stands in brackets behind it: the server's reply, or what went
    wrong before there was one.
    """

    queue_id: str
    recipient: str
    relay: str
    dsn: str
    status: str
    reply: str


class PostfixLog:
    """All attempts, removals and complaints in a mail log; each call reads what has been added since the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._attempts: dict[str, list[Attempt]] = {}
        self._removed: set[str] = set()
        self._complaints: list[str] = []

    def attempts(self, queue_id: str, recipient: str | None = None) -> list[Attempt]:
        """The attempts for a message (and one recipient of it), in their order."""
        self._read()
        attempts = self._attempts.get(queue_id, [])
        return [attempt for attempt in attempts if recipient in (None, attempt.recipient)]

    def all_attempts(self) -> list[Attempt]:
        self._read()
        return [attempt for attempts in self._attempts.values() for attempt in attempts]

    def removed(self) -> set[str]:
        """The queue ids that Postfix has finished with: each recipient sent or bounced."""
        self._read()
        return set(self._removed)

    def complaints(self) -> list[str]:
        """The lines that Postfix logged as warning, error, fatal or panic."""
        self._read()
        return list(self._complaints)

    def _read(self) -> None:
        with self.path.open("rb") as log:
            log.seek(self._offset)
            lines = log.read()
        # A line that is still being written is left for the next call.
        complete = lines[: lines.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.decode(errors="replace").splitlines():
            self._take(line)

    def _take(self, line: str) -> None:
        if match := _ATTEMPT.search(line):
            attempt = Attempt(**match.groupdict())
            self._attempts.setdefault(attempt.queue_id, []).append(attempt)
        elif match := _REMOVED.search(line):
            self._removed.add(match["queue_id"])
        elif _COMPLAINT.search(line):
            self._complaints.append(line)
