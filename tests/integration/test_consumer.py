"""The consumer against a real broker, with ingest and the file code played by the tests."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Awaitable, Callable, Sequence

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from prometheus_client import CollectorRegistry

from services.broker import declare_exchange, declare_work_queue
from services.contract import (
    BUNDLE_TYPE,
    EXCHANGE,
    Acknowledgements,
    Bundle,
    Delivery,
    Outcome,
    OutcomeKind,
    Reason,
    decode_acknowledgements,
    encode,
    queue_name,
)
from services.store.acknowledger import Acknowledger
from services.store.consumer import Consumer
from services.store.metrics import Metrics
from services.store.report import DeliveryReport
from services.store.settings import StoreSettings
from tests.support.broker import Broker
from tests.support.deliveries import make_delivery, until
from tests.support.proxy import Proxy

Run = Callable[[Awaitable[None]], None]
STORED = Outcome(OutcomeKind.STORED, file="f")


@pytest.fixture
def shard() -> str:
    """A number, as the store's setting wants it, that hardly any other test uses."""
    return str(uuid.uuid4().int % 10_000)


class PlayedDisk:
    """Stands for the file code: keeps what it is given, and can be made to wait or to fail."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.free = threading.Event()
        self.free.set()
        self.fails = False

    def deliver(self, batch: Sequence[Delivery]) -> list[DeliveryReport]:
        self.batches.append([delivery.id for delivery in batch])
        assert self.free.wait(60)
        if self.fails:
            raise ZeroDivisionError("a bug")
        return [DeliveryReport(delivery.id, (STORED,) * len(delivery.recipients)) for delivery in batch]

    @property
    def delivered(self) -> list[str]:
        return [delivery_id for batch in self.batches for delivery_id in batch]


class PlayedIngest:
    """Publishes bundles and keeps the acknowledgements that come back."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self.received: list[Acknowledgements] = []
        self.reply_to = ""

    async def start(self) -> None:
        queue = await self._channel.declare_queue(exclusive=True)
        self.reply_to = queue.name

        async def keep(message: AbstractIncomingMessage) -> None:
            self.received.append(decode_acknowledgements(message.body))

        await queue.consume(keep, no_ack=True)

    async def publish(self, shard: str, *deliveries: Delivery, body: bytes = b"", reply_to: str = "") -> str:
        message_id = uuid.uuid4().hex
        message = aio_pika.Message(
            body or encode(Bundle(deliveries)),
            type=BUNDLE_TYPE,
            message_id=message_id,
            reply_to=reply_to or self.reply_to,
        )
        exchange = await self._channel.get_exchange(EXCHANGE)
        await exchange.publish(message, routing_key=shard)
        return message_id

    @property
    def outcomes(self) -> dict[str, tuple[Outcome, ...]]:
        return {item.id: item.outcomes for message in self.received for item in message.acknowledgements}


@pytest.fixture
async def ingest(channel: AbstractChannel) -> PlayedIngest:
    played = PlayedIngest(channel)
    await played.start()
    return played


@pytest.fixture
def disk() -> PlayedDisk:
    return PlayedDisk()


@pytest.fixture
def start(
    broker: Broker, registry: CollectorRegistry, shard: str, disk: PlayedDisk, run: Run
) -> Callable[..., Awaitable[Consumer]]:
    """Starts a consumer of the test's shard and waits until it consumes."""

    async def start_consumer(**changes: object) -> Consumer:
        metrics = Metrics(changes.pop("registry", registry))
        settings = StoreSettings(**{"amqp_url": broker.url, "shard": shard, **changes})
        acknowledger = Acknowledger(settings)
        consumer = Consumer(settings, disk.deliver, acknowledger, metrics)
        run(acknowledger.run())
        run(consumer.run())
        await until(lambda: consumer.connected and acknowledger.connected, "the consumer is connected")
        return consumer

    return start_consumer


async def ready(channel: AbstractChannel, shard: str) -> int:
    """How many bundles wait in the queue, not counting those that somebody has taken."""
    queue = await channel.declare_queue(queue_name(shard), passive=True)
    return queue.declaration_result.message_count or 0


async def test_a_delivery_is_written_acknowledged_and_settled(
    start: Callable[..., Awaitable[Consumer]],
    ingest: PlayedIngest,
    disk: PlayedDisk,
    shard: str,
    registry: CollectorRegistry,
) -> None:
    """Each recipient's outcome reaches the ingest that published; the bundle is gone from the queue."""
    await start()
    delivery = make_delivery("alice", "bob", shard=shard)
    await ingest.publish(shard, delivery)
    await until(lambda: ingest.outcomes, "the acknowledgement arrives")
    assert ingest.outcomes == {delivery.id: (STORED, STORED)}
    in_progress = "roost_store_deliveries_in_progress"
    await until(lambda: registry.get_sample_value(in_progress) == 0, "settled")


async def test_what_arrived_meanwhile_is_written_together(
    start: Callable[..., Awaitable[Consumer]], ingest: PlayedIngest, disk: PlayedDisk, shard: str
) -> None:
    """While one batch is written the next ones gather, and their acknowledgements travel together."""
    await start()
    disk.free.clear()
    first = make_delivery(shard=shard)
    await ingest.publish(shard, first)
    await until(lambda: disk.batches, "the first batch is begun")
    others = [make_delivery(shard=shard) for _ in range(10)]
    for delivery in others:
        await ingest.publish(shard, delivery)
    disk.free.set()
    await until(lambda: len(ingest.outcomes) == 11, "all are acknowledged")
    assert disk.delivered == [first.id, *(delivery.id for delivery in others)]
    assert len(disk.batches) < 11


async def test_an_unreadable_bundle_is_named_and_stops_nobody(
    start: Callable[..., Awaitable[Consumer]], ingest: PlayedIngest, shard: str, registry: CollectorRegistry
) -> None:
    """Rubbish is settled, its publisher learns which bundle it was, and the next one is delivered."""
    await start()
    message_id = await ingest.publish(shard, body=b"\xff rubbish")
    good = make_delivery(shard=shard)
    await ingest.publish(shard, good)
    await until(lambda: good.id in ingest.outcomes, "the good one is acknowledged")
    assert [message.unreadable for message in ingest.received if message.unreadable] == [message_id]
    assert registry.get_sample_value("roost_store_bundles_total", {"result": "unreadable"}) == 1


async def test_a_bug_defers_its_batch_and_stops_nobody(
    start: Callable[..., Awaitable[Consumer]], ingest: PlayedIngest, disk: PlayedDisk, shard: str
) -> None:
    """An exception in the file code becomes a deferral, and the next batch is written."""
    await start()
    disk.fails = True
    bad = make_delivery("alice", "bob", shard=shard)
    await ingest.publish(shard, bad)
    await until(lambda: bad.id in ingest.outcomes, "deferred")
    assert ingest.outcomes[bad.id] == (Outcome(OutcomeKind.DEFERRED, Reason.UNSPECIFIED),) * 2
    disk.fails = False
    good = make_delivery(shard=shard)
    await ingest.publish(shard, good)
    await until(lambda: good.id in ingest.outcomes, "stored")
    assert ingest.outcomes[good.id] == (STORED,)


async def test_a_disk_that_hangs_is_answered_within_the_budget(
    start: Callable[..., Awaitable[Consumer]], ingest: PlayedIngest, disk: PlayedDisk, shard: str
) -> None:
    """Beyond the store's budget the clients are told to come back; nothing more is written until the disk answers."""
    consumer = await start(store_budget_s=0.3)
    disk.free.clear()
    stuck, waiting = make_delivery(shard=shard), make_delivery(shard=shard)
    await ingest.publish(shard, stuck)
    await until(lambda: disk.batches, "it is begun")
    await ingest.publish(shard, waiting)
    await until(lambda: len(ingest.outcomes) == 2, "both are answered")
    assert set(ingest.outcomes.values()) == {(Outcome(OutcomeKind.DEFERRED, Reason.IO_ERROR),)}
    assert consumer.overdue
    assert disk.delivered == [stuck.id]
    disk.free.set()
    good = make_delivery(shard=shard)
    await ingest.publish(shard, good)
    await until(lambda: ingest.outcomes.get(good.id) == (STORED,), "mail flows again")
    assert not consumer.overdue


async def test_a_drain_finishes_what_is_begun_and_gives_back_the_rest(
    start: Callable[..., Awaitable[Consumer]],
    ingest: PlayedIngest,
    disk: PlayedDisk,
    channel: AbstractChannel,
    shard: str,
) -> None:
    """The batch under way is acknowledged; what was only fetched is in the queue again, for the next store."""
    consumer = await start()
    disk.free.clear()
    begun = make_delivery(shard=shard)
    await ingest.publish(shard, begun)
    await until(lambda: disk.batches, "the first batch is begun")
    fetched = [make_delivery(shard=shard) for _ in range(5)]
    for delivery in fetched:
        await ingest.publish(shard, delivery)
    draining = asyncio.create_task(consumer.drain(20))
    await until(lambda: consumer.draining, "draining")
    disk.free.set()
    assert await draining
    await until(lambda: ingest.outcomes == {begun.id: (STORED,)}, "what was begun is acknowledged")
    async with asyncio.timeout(20):
        while await ready(channel, shard) != len(fetched):
            await asyncio.sleep(0.05)
    await start(registry=CollectorRegistry())
    await until(lambda: len(ingest.outcomes) == 6, "the next store delivers the rest")


async def test_a_drain_does_not_wait_for_ever(
    start: Callable[..., Awaitable[Consumer]], ingest: PlayedIngest, disk: PlayedDisk, shard: str
) -> None:
    """A disk that hangs makes the drain give up."""
    consumer = await start()
    disk.free.clear()
    await ingest.publish(shard, make_delivery(shard=shard))
    await until(lambda: disk.batches, "begun")
    assert not await consumer.drain(0.2)
    disk.free.set()


async def test_a_cut_during_the_write_loses_no_outcome(
    broker: Broker,
    start: Callable[..., Awaitable[Consumer]],
    ingest: PlayedIngest,
    disk: PlayedDisk,
    shard: str,
) -> None:
    """Both connections are cut while a batch is written: its acknowledgement is sent on the next connection."""
    async with Proxy(broker.port) as proxy:
        consumer = await start(amqp_url=broker.url.replace(str(broker.port), str(proxy.port)))
        disk.free.clear()
        delivery = make_delivery(shard=shard)
        await ingest.publish(shard, delivery)
        await until(lambda: disk.batches, "begun")
        proxy.cut()
        await until(lambda: not consumer.connected, "the loss is noticed")
        disk.free.set()
        await until(lambda: ingest.outcomes.get(delivery.id) == (STORED,), "the outcome arrives")


async def test_a_deleted_queue_is_consumed_again(
    start: Callable[..., Awaitable[Consumer]],
    ingest: PlayedIngest,
    channel: AbstractChannel,
    shard: str,
    registry: CollectorRegistry,
) -> None:
    """The broker ends a consumption with one frame; the store counts it and consumes again."""
    consumer = await start()
    await channel.queue_delete(queue_name(shard))
    cancelled = "roost_store_consumer_cancelled_total"
    await until(lambda: registry.get_sample_value(cancelled) == 1, "noticed")
    await until(lambda: consumer.connected, "consuming again")
    delivery = make_delivery(shard=shard)
    await ingest.publish(shard, delivery)
    await until(lambda: delivery.id in ingest.outcomes, "delivered")


async def test_nobody_to_tell_stops_nobody(
    start: Callable[..., Awaitable[Consumer]], ingest: PlayedIngest, shard: str, registry: CollectorRegistry
) -> None:
    """A bundle of an ingest that is gone is delivered and settled; the others get their outcomes."""
    await start()
    await ingest.publish(shard, make_delivery(shard=shard), reply_to="amq.gen-gone")
    delivery = make_delivery(shard=shard)
    await ingest.publish(shard, delivery)
    await until(lambda: delivery.id in ingest.outcomes, "delivered")
    in_progress = "roost_store_deliveries_in_progress"
    await until(lambda: registry.get_sample_value(in_progress) == 0, "both settled")


async def test_either_side_may_come_first(
    channel: AbstractChannel,
    start: Callable[..., Awaitable[Consumer]],
    ingest: PlayedIngest,
    broker: Broker,
    shard: str,
) -> None:
    """What was published before any store ran is delivered when one comes."""
    settings = StoreSettings(amqp_url=broker.url, shard=shard)
    await declare_work_queue(channel, await declare_exchange(channel), shard, settings.queue_policy)
    delivery = make_delivery(shard=shard)
    await ingest.publish(shard, delivery)
    await start()
    await until(lambda: delivery.id in ingest.outcomes, "delivered")
