"""Moves deliveries to the stores and their acknowledgements back: publishes, matches, resends, gives up.

Knows AMQP and the contract. Knows neither LMTP nor where mailboxes are.

A delivery is published again on evidence that it was lost: its connection or channel was closed, or the broker refused
it. Silence is no evidence: a store that is slow would only get more to do.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final

import aio_pika
import aiormq
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage

from services.broker import (
    BrokerSettings,
    declare_exchange,
    declare_work_queue,
    keep_connected,
    lost_peer,
    until_channel_ends,
)
from services.contract import (
    ACKNOWLEDGEMENTS_TYPE,
    BUNDLE_TYPE,
    Bundle,
    Delivery,
    UnreadableError,
    decode_acknowledgements,
    encode,
)
from services.ingest.inflight import Failure, InFlight, Item, Settlement
from services.ingest.metrics import Metrics

log = structlog.get_logger()

# Bundles of one shard under way at a time. What arrives meanwhile waits and becomes the next bundle.
_PUBLISHES_AT_ONCE: Final = 2

# A full queue may have room a moment later; when it has none for so long, the client is told to come back, well before
# its deadline.
_REFUSAL_PAUSE_S: Final = 0.2
_REFUSALS_BORNE: Final = 10

_SWEEP_S: Final = 0.2


class _Link:
    """One connection to the broker, with everything that lives and dies with it."""

    def __init__(self, channel: AbstractChannel, exchange: AbstractExchange, reply_queue: str) -> None:
        self.channel = channel
        self.exchange = exchange
        self.reply_queue = reply_queue
        self.blocked = False
        self.publishing: dict[str, int] = {}  # by shard
        self.tasks: set[asyncio.Task[None]] = set()


class Publisher:
    """Owns the connection to the broker and every delivery in flight.

    `run` must be running for deliveries to settle; `submit` may be called while nothing is connected.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        metrics: Metrics,
        *,
        shards: Sequence[str],
        max_in_flight: int,
        max_in_flight_bytes: int,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._shards = shards
        self._in_flight = InFlight(metrics, shards=shards, max_deliveries=max_in_flight, max_bytes=max_in_flight_bytes)
        self._link: _Link | None = None
        self._loop = asyncio.get_running_loop()
        metrics.in_flight.set_function(lambda: len(self._in_flight))
        metrics.in_flight_bytes.set_function(lambda: self._in_flight.bytes)
        metrics.oldest_in_flight.set_function(self.oldest_s)
        metrics.broker_connected.set_function(lambda: self.connected)
        metrics.broker_blocked.set_function(lambda: self.blocked)

    @property
    def connected(self) -> bool:
        """Whether the broker is connected and its topology declared."""
        return self._link is not None

    @property
    def blocked(self) -> bool:
        """Whether the broker takes no publishes for now, for want of memory or disk."""
        return self._link is not None and self._link.blocked

    @property
    def full(self) -> bool:
        """Whether the next delivery would be refused for the number or size of those in flight."""
        return self._in_flight.full

    def oldest_s(self) -> float:
        """Age of the oldest delivery in flight, in seconds."""
        return self._in_flight.oldest_s(self._loop.time())

    def delivery_deadline(self) -> float:
        """Until when a store may begin a delivery that is submitted now, in seconds since the epoch."""
        return time.time() + self._settings.ack_deadline_s - self._settings.store_budget_s

    def submit(self, delivery: Delivery, settled: Callable[[Settlement], None]) -> None:
        """Hand a delivery to its store.

        `settled` is called once, in the event loop, by the acknowledgement deadline at the latest, with one outcome per
        recipient in their order, or with the failure that stands for all of them. It must not raise.
        """
        if self._in_flight.full:
            settled(Failure.OVERLOADED)
            return
        self._in_flight.add(delivery, settled, self._loop.time())
        self._pump(delivery.recipients[0].shard)

    async def run(self) -> None:
        """Stay connected and keep deadlines, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_deadlines())
            tasks.create_task(keep_connected(self._settings, "ingest", self._serve))

    async def _keep_deadlines(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            failure = Failure.NO_STORE if self._link else Failure.BROKER_LOST
            self._in_flight.expire(self._loop.time() - self._settings.ack_deadline_s, failure)

    # One connection

    async def _serve(self, connection: AbstractConnection) -> None:
        """Declare, consume acknowledgements, publish what waits; return when the channel is closed."""
        channel = await connection.channel(on_return_raises=True)
        exchange = await self._declare(channel)
        # A name of its own for every connection: the broker may hold the old one for a while (AMQP.md, 6).
        reply_queue = await channel.declare_queue(exclusive=True)
        await reply_queue.consume(self._on_message, no_ack=True)
        link = _Link(channel, exchange, reply_queue.name)
        watching = asyncio.create_task(self._watch_alarm(connection, link))
        self._link = link
        try:
            for shard in self._shards:
                self._pump(shard)
            if await until_channel_ends(channel):
                log.warning("the broker deleted the reply queue")
        finally:
            self._link = None
            watching.cancel()
            await self._abandon(link)

    async def _declare(self, channel: AbstractChannel) -> AbstractExchange:
        exchange = await declare_exchange(channel)
        for shard in self._shards:
            await declare_work_queue(channel, exchange, shard, self._settings.queue_policy)
        return exchange

    async def _watch_alarm(self, connection: AbstractConnection, link: _Link) -> None:
        """Keep `link.blocked`: the client library tells it only as a wait that does not end."""
        transport = connection.transport
        assert transport is not None  # noqa: S101 - the connection is open
        while True:
            try:
                async with asyncio.timeout(_SWEEP_S):
                    await transport.connection.ready()
            except TimeoutError:
                link.blocked = True
            else:
                link.blocked = False
                await asyncio.sleep(_SWEEP_S)

    async def _abandon(self, link: _Link) -> None:
        """The connection is gone: what was published on it and has no outcome will get none. Publish it again."""
        for task in link.tasks:
            task.cancel()
        if link.tasks:
            await asyncio.wait(link.tasks)
        self._in_flight.publish_again(self._in_flight.published(), "connection_lost")

    # Publishing

    def _pump(self, shard: str) -> None:
        """Publish what waits for a shard, as far as the link is free."""
        link = self._link
        if link is None:
            return
        while link.publishing.get(shard, 0) < _PUBLISHES_AT_ONCE and (items := self._in_flight.take_bundle(shard)):
            link.publishing[shard] = link.publishing.get(shard, 0) + 1
            # Returns are matched by message id: a new one for every attempt (AMQP.md, 1). It is set here, because the
            # task may be cancelled before it begins.
            attempt = uuid.uuid4().hex
            for item in items:
                item.attempt = attempt
            task = asyncio.create_task(self._publish(link, shard, items, attempt))
            link.tasks.add(task)
            task.add_done_callback(link.tasks.discard)

    async def _publish(self, link: _Link, shard: str, items: list[Item], attempt: str) -> None:
        """Publish one bundle and deal with what the broker says of it."""
        try:
            result = await self._publish_bundle(link, shard, items, attempt)
        finally:
            link.publishing[shard] -= 1
        self._metrics.publishes.labels(result).inc()
        self._metrics.bundle_size.observe(len(items))
        match result:
            case "unroutable":
                await self._retry_unroutable(link, items)
            case "too_large":
                self._settle_all(items, Failure.TOO_LARGE)
            case "refused":
                self._loop.call_later(_REFUSAL_PAUSE_S, self._retry_refused, items, attempt)
        self._pump(shard)

    async def _publish_bundle(self, link: _Link, shard: str, items: list[Item], attempt: str) -> str:
        """What became of the publish: confirmed, unroutable, too_large, refused or lost."""
        now = time.time()
        body = encode(Bundle(tuple(item.delivery for item in items), now))
        message = aio_pika.Message(
            body,
            message_id=attempt,
            type=BUNDLE_TYPE,
            reply_to=link.reply_queue,
            expiration=max(0.001, min(item.delivery.deadline for item in items) - now),
            delivery_mode=aio_pika.DeliveryMode.NOT_PERSISTENT,
        )
        try:
            confirmation = await link.exchange.publish(message, routing_key=shard, mandatory=True)
        except aio_pika.exceptions.PublishError:
            return "unroutable"
        except aio_pika.exceptions.DeliveryError:
            return "refused"
        except BaseException as error:
            if not lost_peer(error):
                raise
            if f"message size {len(body)} is larger" in str(error):
                # The broker closed the channel over this one. Sent again, it would do so for ever.
                log.error("bundle above the broker's max_message_size", bytes=len(body))  # noqa: TRY400 - no bug
                return "too_large"
            # The link's end lets them be published again, together with all the others that were published on it.
            return "lost"
        return "confirmed" if isinstance(confirmation, aiormq.spec.Basic.Ack) else "refused"

    def _settle_all(self, items: Sequence[Item], failure: Failure) -> None:
        for item in items:
            self._in_flight.settle(item, failure)

    def _retry_refused(self, items: Sequence[Item], attempt: str) -> None:
        """The broker had no room for these: try a few times more, then tell the clients to come back."""
        current = [item for item in items if item.attempt == attempt]
        for item in current:
            item.refusals += 1
        self._settle_all([item for item in current if item.refusals > _REFUSALS_BORNE], Failure.QUEUE_FULL)
        self._in_flight.publish_again(current, "refused")
        for shard in self._shards:
            self._pump(shard)

    async def _retry_unroutable(self, link: _Link, items: Sequence[Item]) -> None:
        """Somebody deleted a queue: declare it again, so that mail flows without a restart, and try once more."""
        for item in items:
            item.refusals += 1
        try:
            await self._declare(link.channel)
        except BaseException as error:
            if not lost_peer(error):
                raise
            self._settle_all(items, Failure.UNROUTABLE)
        else:
            self._settle_all([item for item in items if item.refusals > 1], Failure.UNROUTABLE)
            self._in_flight.publish_again(items, "unroutable")

    # Acknowledgements

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        """Settle what a store acknowledges. What cannot be read is silence: its clients get 4xx at their deadline."""
        if message.type != ACKNOWLEDGEMENTS_TYPE:
            self._metrics.acknowledgements.labels("unreadable").inc()
            return
        try:
            arrived = decode_acknowledgements(message.body)
        except UnreadableError as error:
            log.error("unreadable acknowledgements", error=str(error))  # noqa: TRY400 - the peer's bug, not ours
            self._metrics.acknowledgements.labels("unreadable").inc()
            return
        now = self._loop.time()
        for acknowledgement in arrived.acknowledgements:
            self._in_flight.acknowledge(acknowledgement, now)
        if arrived.unreadable:
            self._in_flight.refuse_unreadable(arrived.unreadable)
