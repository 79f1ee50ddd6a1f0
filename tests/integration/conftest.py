"""Fixtures of the integration tests: parts of the services in the test's own loop, against a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from prometheus_client import CollectorRegistry

from services.broker import BrokerSettings
from tests.support.broker import Broker

_numbers = itertools.count()


@pytest.fixture
def shard() -> str:
    """A shard that no other test uses, and so a queue of the test's own."""
    return f"{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def make_settings(broker: Broker) -> Callable[..., BrokerSettings]:
    """Settings for the shared broker, or for another URL, with quick deadlines unless told."""

    def make(kind: type[BrokerSettings] = BrokerSettings, **changes: Any) -> Any:
        changes.setdefault("amqp_url", broker.url)
        return kind(**changes)

    return make


@pytest.fixture
async def channel(broker: Broker) -> AsyncIterator[AbstractChannel]:
    """A channel of the test's own, to play the other service."""
    connection = await aio_pika.connect(broker.url)
    async with connection:
        yield await connection.channel()


@pytest.fixture
async def run() -> AsyncIterator[Callable[[Awaitable[None]], None]]:
    """Runs a part of a service until the test ends. A part that fails fails the test."""
    tasks: list[asyncio.Task[None]] = []
    yield lambda coroutine: tasks.append(asyncio.ensure_future(coroutine))
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
