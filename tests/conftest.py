"""Fixtures for every kind of test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.broker import Broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running broker that all tests share: leave it running, and use queue names or a virtual host of your own."""
    shared = Broker(tmp_path_factory.mktemp("broker") / "broker")
    shared.start()
    yield shared
    shared.stop()


@pytest.fixture
def new_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Starts a broker of the test's own, to stop, kill and start again; `new_broker("line of rabbitmq.conf")`."""
    started: list[Broker] = []

    def start(configuration: str = "") -> Broker:
        started.append(Broker(tmp_path / f"broker{len(started)}", configuration))
        started[-1].start()
        return started[-1]

    yield start
    for broker in started:
        broker.stop()
