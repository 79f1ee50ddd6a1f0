"""When a test fails, its report carries the ends of the running peers' logs.

A conftest switches it on by importing `pytest_runtest_makereport` from here.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

_TAIL_BYTES = 6000
_watched: dict[Path, str] = {}


def watch(path: Path, title: str) -> None:
    """From now on failing tests report the end of this file; a peer calls it when it starts."""
    _watched[path] = title


def tail(path: Path) -> str:
    """The last lines of a log; "" if there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"log of {title}", end) for path, title in _watched.items() if (end := tail(path))]
    return report
