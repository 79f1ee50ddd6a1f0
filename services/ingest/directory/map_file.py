"""A directory from a text file in the form of Postfix's virtual_mailbox_maps (postmap(1), texthash).

    # comment
    alice@example.org   example.org/alice/
    @example.com        example.com/all/

The value is the maildir's path below the mail root and ends with a slash, as virtual(8) wants it for a maildir. Keys
and lookups fold case. A key `@domain` answers for every other address of that domain. A line that begins with white
space continues the one before it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from services.contract import MAX_MAILBOX_BYTES
from services.ingest.directory import Answer, Found, Unavailable, Unknown
from services.ingest.metrics import Metrics

log = structlog.get_logger()

# A change is noticed by a look at the file's identity: that also sees the swap of a symbolic link above it, which is
# how Kubernetes updates a mounted ConfigMap.
_POLL_S: Final = 0.5
_PROBLEMS_LOGGED: Final = 20

_Identity = tuple[int, int, int, int]


class MapFile:
    """Reads the file when it is made and whenever it changes; a reload that fails keeps the old answers."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        self._path = path
        self._metrics = metrics
        self._answers: dict[str, Answer] | None = None
        self._identity: _Identity | None = None
        self._error = ""
        self._problems = 0
        metrics.directory_entries.set_function(lambda: len(self._answers or ()))
        self._reload()

    def lookup(self, address: str) -> Answer:
        """The mailbox of an address; its domain's `@domain` entry if it has none of its own."""
        if self._answers is None:
            return Unavailable(self._error)
        key = address.casefold()
        answer = self._answers.get(key)
        if answer is None:
            answer = self._answers.get(key[key.rfind("@") :])
        return answer or Unknown()

    def status(self) -> tuple[bool, str]:
        """Whether the last read succeeded; the number of addresses and of lines that were left out."""
        if self._error:
            return False, self._error
        return True, f"{len(self._answers or ())} addresses, {self._problems} bad lines"

    async def run(self) -> None:
        """Read the file again when it has changed, until cancelled."""
        seen = self._identity
        while True:
            await asyncio.sleep(_POLL_S)
            last, seen = seen, _identify(self._path)
            # A file that is still being written looks different at the next look.
            if seen == last and (seen != self._identity or self._error):
                # A large file takes seconds to parse.
                await asyncio.to_thread(self._reload)

    def _reload(self) -> None:
        try:
            identity, text = _read_whole(self._path)
        except (OSError, ValueError) as error:
            self._fail(f"cannot read {self._path}: {getattr(error, 'strerror', None) or error}")
            return
        answers, problems = parse(text)
        for number, problem in problems[:_PROBLEMS_LOGGED]:
            log.error("bad line in recipients", file=str(self._path), line=number, problem=problem)
        self._answers = answers
        self._identity = identity
        self._problems = len(problems)
        self._error = ""
        self._metrics.directory_reloads.labels("ok").inc()
        log.info("recipients read", file=str(self._path), addresses=len(answers), bad_lines=len(problems))

    def _fail(self, error: str) -> None:
        self._metrics.directory_reloads.labels("failed").inc()
        if error != self._error:
            log.error("recipients not read", error=error, kept=len(self._answers or ()))
        self._error = error


def _identify(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _identity_of(status)


def _identity_of(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read_whole(path: Path) -> tuple[_Identity, str]:
    """The file's text, and the identity of exactly what was read. Raises OSError, or ValueError if it is not UTF-8.

    A file that changes while it is read counts as unreadable: half a list would bounce the mail of the other half.
    """
    with path.open("rb") as file:
        before = _identity_of(os.fstat(file.fileno()))
        data = file.read()
        if before != _identity_of(os.fstat(file.fileno())) or len(data) != before[2]:
            raise ValueError("it changed while it was read")
        if not data:
            raise ValueError("it is empty, as a file is that is about to be written")
    return before, data.decode()


def parse(text: str) -> tuple[dict[str, Answer], list[tuple[int, str]]]:
    """The answers by folded address, and the bad lines as (line number, problem).

    An address whose line is bad answers "unavailable": a slip in the file must defer its mail, not bounce it.
    """
    answers: dict[str, Answer] = {}
    problems: list[tuple[int, str]] = []
    for number, line in _logical_lines(text):
        fields = line.split(maxsplit=1)
        key, value = fields[0].casefold(), fields[1].strip() if len(fields) > 1 else ""
        problem = _problem(key, value)
        if problem is None and key in answers:
            problem = "the address stands here a second time; the first one counts"
        elif problem is None:
            answers[key] = Found(value.rstrip("/"))
        elif "@" in key:
            answers.setdefault(key, Unavailable(f"bad line {number}"))
        if problem:
            problems.append((number, problem))
    return answers, problems


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that hold something, with their continuations, and the number of the first line of each."""
    number, collected = 0, ""
    for current, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0] in " \t" and collected:
            collected += " " + line.strip()
            continue
        if collected:
            yield number, collected
        number, collected = current, line.strip()
    if collected:
        yield number, collected


def _problem(key: str, value: str) -> str | None:
    """What is wrong with an entry, if anything."""
    if key.count("@") == 0 or key.endswith("@"):
        return "the key is neither an address nor @domain"
    if not value:
        return "the mailbox is missing"
    if not value.endswith("/"):
        return "the mailbox does not end with /, which would make it an mbox file"
    path = value.rstrip("/")
    if path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        return "the mailbox is not a path below the mail root"
    if len(path.encode()) > MAX_MAILBOX_BYTES:
        return f"the mailbox's path is longer than {MAX_MAILBOX_BYTES} bytes"
    return None
