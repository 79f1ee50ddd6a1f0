"""The wiring to RabbitMQ that both services need: connect, stay connected, declare the topology.

Knows AMQP and the contract's names. Knows neither LMTP nor files.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Final, Literal, Self

import aio_pika
import pydantic
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractQueue

from services.contract import EXCHANGE, QueuePolicy, queue_arguments, queue_name
from services.process.settings import ProcessSettings

log = structlog.get_logger()

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0
# How long a connection that is being given up may take to say goodbye.
_CLOSE_TIMEOUT_S: Final = 2.0

# What a lost or refusing broker raises. A stuck connection ends pending calls with CancelledError, which is no
# Exception: see `lost_peer`.
_BROKER_ERRORS: Final = (
    aio_pika.exceptions.AMQPError,
    aio_pika.exceptions.ChannelInvalidStateError,
    OSError,
    TimeoutError,
)


class BrokerSettings(ProcessSettings):
    """How to reach the broker, and the deadlines of the leg over it; both services need the same ones."""

    amqp_url: pydantic.SecretStr = pydantic.Field(
        pydantic.SecretStr("amqp://guest:guest@127.0.0.1:5672/"),
        description="The broker's URL; several, separated by commas, are tried in turn.",
    )
    amqp_heartbeat_s: int = pydantic.Field(
        5, ge=1, le=600, description="A silent broker is given up after about 3.6 times as many seconds."
    )
    amqp_connect_timeout_s: float = pydantic.Field(
        10.0, gt=0, description="How long one attempt to connect to the broker may take."
    )
    queue_type: Literal["classic", "quorum"] = pydantic.Field(
        "classic", description="classic for one broker node, quorum for three."
    )
    queue_max_length: int = pydantic.Field(20_000, gt=0, description="How many bundles may wait in a shard's queue.")
    queue_max_bytes: int = pydantic.Field(1 << 30, gt=0, description="How many bytes may wait in a shard's queue.")
    store_budget_s: float = pydantic.Field(
        10.0, gt=0, description="How long the store may take for one batch before it answers that it could not."
    )
    queue_ttl_s: float = pydantic.Field(
        45.0, gt=0, description="How long a bundle may wait for a store; above the store's budget."
    )
    ack_deadline_s: float = pydantic.Field(
        60.0, gt=0, description="When a transaction is answered at the latest; above the queue's time."
    )
    mta_timeout_s: float = pydantic.Field(
        600.0, gt=0, description="How long the MTA waits for the replies after DATA (Postfix: lmtp_data_done_timeout)."
    )

    @pydantic.field_validator("amqp_url")
    @classmethod
    def _check_url(cls, value: pydantic.SecretStr) -> pydantic.SecretStr:
        for url in value.get_secret_value().split(","):
            if not url.strip().startswith(("amqp://", "amqps://")):
                raise ValueError("must begin with amqp:// or amqps://")
        return value

    @pydantic.model_validator(mode="after")
    def _check_deadlines(self) -> Self:
        # A leg that outlives the one around it delivers after its client has given up.
        chain = ("store_budget_s", "queue_ttl_s", "ack_deadline_s", "mta_timeout_s")
        for inner, outer in itertools.pairwise(chain):
            if getattr(self, inner) >= getattr(self, outer):
                raise ValueError(
                    f"ROOST_{inner.upper()}={getattr(self, inner)} must be below "
                    f"ROOST_{outer.upper()}={getattr(self, outer)}"
                )
        return self

    @property
    def queue_policy(self) -> QueuePolicy:
        """The arguments of the work queues."""
        return QueuePolicy(self.queue_type, self.queue_ttl_s, self.queue_max_length, self.queue_max_bytes)


def lost_peer(error: BaseException) -> bool:
    """Whether what a call raised means that the broker is gone or refuses, and not that we were cancelled."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() == 0
    return isinstance(error, _BROKER_ERRORS)


async def keep_connected(
    settings: BrokerSettings, name: str, serve: Callable[[AbstractConnection], Awaitable[None]]
) -> None:
    """Connect, run `serve` until it returns or the connection is lost, and begin again, until cancelled.

    `serve` owns what it opens on the connection, returns when its channel closes, and must not swallow its own
    cancellation; the connection is closed behind it. The pauses grow from 0.1 to 2 seconds while nothing works.
    """
    loop = asyncio.get_running_loop()
    pause = _FIRST_PAUSE_S
    urls = [url.strip() for url in settings.amqp_url.get_secret_value().split(",")]
    turn = 0
    while True:
        try:
            connection = await _connect(urls[turn % len(urls)], settings, name)
        except BaseException as error:
            if not lost_peer(error):
                raise
            log.warning("broker unreachable", connection=name, error=_describe(error))
        else:
            began = loop.time()
            await _serve_until_lost(connection, name, serve)
            if loop.time() - began > _LONGEST_PAUSE_S:
                pause = _FIRST_PAUSE_S
        turn += 1
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnects, guards nothing
        pause = min(pause * 2, _LONGEST_PAUSE_S)


async def _connect(url: str, settings: BrokerSettings, name: str) -> AbstractConnection:
    async with asyncio.timeout(settings.amqp_connect_timeout_s):
        return await aio_pika.connect(
            url, heartbeat=settings.amqp_heartbeat_s, client_properties={"connection_name": f"roost {name}"}
        )


async def _serve_until_lost(
    connection: AbstractConnection, name: str, serve: Callable[[AbstractConnection], Awaitable[None]]
) -> None:
    log.info("broker connected", connection=name)
    serving = asyncio.ensure_future(serve(connection))
    lost = asyncio.get_running_loop().create_future()
    connection.close_callbacks.add(lambda *_: None if lost.done() else lost.set_result(None))
    try:
        if connection.connected.is_set():
            await asyncio.wait({serving, lost}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done() and not serving.cancelled() and (error := serving.exception()) and not lost_peer(error):
            raise error
        log.warning("broker lost", connection=name, error=_reason(serving))
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        await close(connection)


def _reason(serving: asyncio.Future[None]) -> str:
    if serving.done() and not serving.cancelled() and (error := serving.exception()):
        return _describe(error)
    return "connection closed"


def _describe(error: BaseException) -> str:
    # One line without the URL, which may hold a password.
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


async def close(connection: AbstractConnection) -> None:
    """Close a connection, in bounded time, whatever state it is in."""
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await connection.close()
    except BaseException as error:
        if not lost_peer(error):
            raise


async def declare_exchange(channel: AbstractChannel) -> AbstractExchange:
    """The exchange on which ingest publishes; both sides declare it, whoever comes first."""
    return await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.DIRECT, durable=True)


async def declare_work_queue(
    channel: AbstractChannel, exchange: AbstractExchange, shard: str, policy: QueuePolicy
) -> AbstractQueue:
    """The work queue of a shard, bound to the exchange; both sides declare it, whoever comes first."""
    queue = await channel.declare_queue(queue_name(shard), durable=True, arguments={**queue_arguments(policy)})
    await queue.bind(exchange, routing_key=shard)
    return queue


async def until_channel_ends(channel: AbstractChannel) -> bool:
    """Wait until a channel that consumes is of no more use. True if the broker ended the consumption, or a queue.

    The broker says so with a single frame (basic.cancel); the channel itself stays open and silent.
    """
    cancelled = asyncio.get_running_loop().create_future()
    underlay = await channel.get_underlay_channel()
    underlay.on_consumer_cancel_callbacks.add(lambda _: None if cancelled.done() else cancelled.set_result(None))
    closed = asyncio.ensure_future(channel.closed())
    try:
        await asyncio.wait({cancelled, closed}, return_when=asyncio.FIRST_COMPLETED)
        return cancelled.done()
    finally:
        closed.cancel()
