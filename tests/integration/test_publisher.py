"""The publisher against a real broker, with stores played by the tests and links that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from prometheus_client import CollectorRegistry

from services.broker import BrokerSettings, declare_exchange, declare_work_queue
from services.contract import (
    ACKNOWLEDGEMENTS_TYPE,
    Acknowledgement,
    Acknowledgements,
    Bundle,
    Delivery,
    Outcome,
    OutcomeKind,
    Reason,
    decode_bundle,
    encode,
    queue_name,
)
from services.ingest.inflight import Failure, Settlement
from services.ingest.metrics import Metrics
from services.ingest.publisher import Publisher
from tests.support.broker import Broker
from tests.support.deliveries import make_delivery, until
from tests.support.proxy import Proxy

Run = Callable[[Awaitable[None]], None]
MakeSettings = Callable[..., BrokerSettings]
STORED = Outcome(OutcomeKind.STORED, file="f")


class PlayedStore:
    """Consumes a shard's queue and keeps the bundles; acknowledges when it is told to."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel
        self.messages: list[AbstractIncomingMessage] = []

    async def consume(self, shard: str, settings: BrokerSettings) -> None:
        exchange = await declare_exchange(self._channel)
        queue = await declare_work_queue(self._channel, exchange, shard, settings.queue_policy)

        async def keep(message: AbstractIncomingMessage) -> None:
            self.messages.append(message)

        await queue.consume(keep)

    @property
    def bundles(self) -> list[Bundle]:
        return [decode_bundle(message.body) for message in self.messages]

    async def send(self, message: AbstractIncomingMessage, answer: Acknowledgements | bytes) -> None:
        body = answer if isinstance(answer, bytes) else encode(answer)
        reply = aio_pika.Message(body, type=ACKNOWLEDGEMENTS_TYPE)
        await self._channel.default_exchange.publish(reply, routing_key=message.reply_to or "")

    async def acknowledge(self, message: AbstractIncomingMessage, outcome: Outcome = STORED) -> None:
        await self.send(
            message,
            Acknowledgements(
                tuple(
                    Acknowledgement(delivery.id, (outcome,) * len(delivery.recipients))
                    for delivery in decode_bundle(message.body).deliveries
                )
            ),
        )


@pytest.fixture
async def store(channel: AbstractChannel) -> PlayedStore:
    return PlayedStore(channel)


def make_publisher(settings: BrokerSettings, registry: CollectorRegistry, shard: str, **bounds: int) -> Publisher:
    bounds = {"max_in_flight": 1000, "max_in_flight_bytes": 1 << 30, **bounds}
    return Publisher(settings, Metrics(registry), shards=[shard], **bounds)


def submit(publisher: Publisher, delivery: Delivery) -> asyncio.Future[Settlement]:
    settled: asyncio.Future[Settlement] = asyncio.get_running_loop().create_future()
    publisher.submit(delivery, settled.set_result)
    return settled


async def settlement(settled: asyncio.Future[Settlement], timeout: float = 20) -> Settlement:
    async with asyncio.timeout(timeout):
        return await settled


async def test_outcomes_come_back_to_who_waits(
    make_settings: MakeSettings, registry: CollectorRegistry, shard: str, store: PlayedStore, run: Run
) -> None:
    """The acknowledgement's outcomes settle the delivery, recipient by recipient."""
    settings = make_settings()
    publisher = make_publisher(settings, registry, shard)
    run(publisher.run())
    await store.consume(shard, settings)
    settled = submit(publisher, make_delivery("alice", "bob", shard=shard))
    await until(lambda: store.messages, "the bundle arrives")
    mixed = (STORED, Outcome(OutcomeKind.DEFERRED, Reason.OVER_QUOTA))
    delivery_id = store.bundles[0].deliveries[0].id
    await store.send(store.messages[0], Acknowledgements((Acknowledgement(delivery_id, mixed),)))
    assert await settlement(settled) == mixed


async def test_what_waits_travels_together_within_bounds(
    make_settings: MakeSettings, registry: CollectorRegistry, shard: str, store: PlayedStore, run: Run
) -> None:
    """Deliveries that wait for the link share bundles, in order; a large one travels alone; none is left out."""
    settings = make_settings()
    publisher = make_publisher(settings, registry, shard)
    deliveries = [make_delivery(shard=shard) for _ in range(150)]
    deliveries.insert(75, make_delivery(shard=shard, content=b"x" * (1 << 20)))
    waiting = [submit(publisher, delivery) for delivery in deliveries]
    run(publisher.run())
    await store.consume(shard, settings)
    await until(lambda: sum(len(b.deliveries) for b in store.bundles) == len(deliveries), "all arrive")
    sizes = [len(bundle.deliveries) for bundle in store.bundles]
    assert max(sizes) > 1
    assert [len(b.deliveries) for b in store.bundles if len(b.deliveries[0].content) == 1 << 20] == [1]
    assert [d.id for b in store.bundles for d in b.deliveries] == [d.id for d in deliveries]
    for message in store.messages:
        await store.acknowledge(message)
    assert [await settlement(future) for future in waiting] == [(STORED,)] * len(deliveries)


async def test_silence_is_answered_at_the_deadline_and_not_resent(
    make_settings: MakeSettings, registry: CollectorRegistry, shard: str, store: PlayedStore, run: Run
) -> None:
    """A store that does not acknowledge gets the delivery once; its client is told to come back."""
    settings = make_settings(store_budget_s=0.1, queue_ttl_s=0.5, ack_deadline_s=1.5)
    publisher = make_publisher(settings, registry, shard)
    run(publisher.run())
    await store.consume(shard, settings)
    settled = submit(publisher, make_delivery(shard=shard))
    assert await settlement(settled) is Failure.NO_STORE
    assert len(store.messages) == 1
    assert registry.get_sample_value("roost_ingest_in_flight_bytes") == 0


async def test_no_broker_is_answered_at_the_deadline(registry: CollectorRegistry, shard: str, run: Run) -> None:
    """Without a broker a delivery waits, and its client is told to come back at the deadline."""
    settings = BrokerSettings(amqp_url="amqp://127.0.0.1:1/", store_budget_s=0.1, queue_ttl_s=0.2, ack_deadline_s=0.5)
    publisher = make_publisher(settings, registry, shard)
    run(publisher.run())
    assert await settlement(submit(publisher, make_delivery(shard=shard))) is Failure.BROKER_LOST
    assert registry.get_sample_value("roost_ingest_in_flight_deliveries") == 0


async def test_a_late_acknowledgement_finds_nobody(
    make_settings: MakeSettings, registry: CollectorRegistry, shard: str, store: PlayedStore, run: Run
) -> None:
    """An acknowledgement after the deadline is counted and changes nothing."""
    settings = make_settings(store_budget_s=0.1, queue_ttl_s=0.5, ack_deadline_s=1)
    publisher = make_publisher(settings, registry, shard)
    run(publisher.run())
    await store.consume(shard, settings)
    settled = submit(publisher, make_delivery(shard=shard))
    assert await settlement(settled) is Failure.NO_STORE
    await store.acknowledge(store.messages[0])
    late = ("roost_ingest_acknowledgements_total", {"result": "late"})
    await until(lambda: registry.get_sample_value(*late) == 1, "the late one is counted")


async def test_a_cut_connection_is_evidence(
    broker: Broker,
    make_settings: MakeSettings,
    registry: CollectorRegistry,
    shard: str,
    store: PlayedStore,
    run: Run,
) -> None:
    """After a cut what has no outcome is published again, under a new message id and with a reply queue that exists."""
    async with Proxy(broker.port) as proxy:
        settings = make_settings(amqp_url=broker.url.replace(str(broker.port), str(proxy.port)))
        publisher = make_publisher(settings, registry, shard)
        run(publisher.run())
        await store.consume(shard, settings)
        settled = submit(publisher, make_delivery(shard=shard))
        await until(lambda: store.messages, "the first attempt arrives")
        proxy.cut()
        await until(lambda: len(store.messages) == 2, "the second attempt arrives")
        first, second = store.messages
        assert decode_bundle(first.body).deliveries == decode_bundle(second.body).deliveries
        assert first.message_id != second.message_id
        assert first.reply_to != second.reply_to
        await store.acknowledge(second)
        assert await settlement(settled) == (STORED,)
        assert registry.get_sample_value("roost_ingest_resends_total", {"cause": "connection_lost"}) == 1


async def test_a_half_open_connection_is_noticed(
    broker: Broker,
    make_settings: MakeSettings,
    registry: CollectorRegistry,
    shard: str,
    store: PlayedStore,
    run: Run,
) -> None:
    """Packets that vanish without a reset end the connection by its heartbeat; the delivery is published again."""
    async with Proxy(broker.port) as proxy:
        settings = make_settings(
            amqp_url=broker.url.replace(str(broker.port), str(proxy.port)),
            amqp_heartbeat_s=1,
            amqp_connect_timeout_s=1,
        )
        publisher = make_publisher(settings, registry, shard)
        run(publisher.run())
        await store.consume(shard, settings)
        await until(lambda: publisher.connected, "connected")
        proxy.freeze()
        settled = submit(publisher, make_delivery(shard=shard))
        await until(lambda: not publisher.connected, "the loss is noticed", timeout=30)
        proxy.thaw()
        await until(lambda: store.messages, "it arrives after all", timeout=30)
        await store.acknowledge(store.messages[-1])
        assert await settlement(settled) == (STORED,)


async def test_a_killed_broker_is_only_a_wait(
    new_broker: Callable[..., Broker], registry: CollectorRegistry, shard: str, run: Run
) -> None:
    """A kill -9 of the broker after the publish: when it is back the delivery comes again and is settled."""
    broker = await asyncio.to_thread(new_broker)
    settings = BrokerSettings(amqp_url=broker.url)
    publisher = make_publisher(settings, registry, shard)
    run(publisher.run())
    settled = submit(publisher, make_delivery(shard=shard))
    confirmed = ("roost_ingest_publishes_total", {"result": "confirmed"})
    await until(lambda: registry.get_sample_value(*confirmed) == 1, "confirmed")
    await asyncio.to_thread(broker.kill)
    await until(lambda: not publisher.connected, "the loss is noticed")
    await asyncio.to_thread(broker.start)
    connection = await aio_pika.connect(broker.url)
    async with connection:
        store = PlayedStore(await connection.channel())
        await store.consume(shard, settings)
        await until(lambda: store.messages, "it comes again")
        await store.acknowledge(store.messages[-1])
        assert await settlement(settled) == (STORED,)


async def test_a_full_queue_is_answered_before_the_deadline(
    make_settings: MakeSettings, registry: CollectorRegistry, shard: str, run: Run
) -> None:
    """What the broker refuses for want of room is tried again for a while, then its client is told to come back."""
    settings = make_settings(queue_max_length=1)
    publisher = make_publisher(settings, registry, shard)
    run(publisher.run())
    large = b"x" * (600 * 1024)
    waiting = [submit(publisher, make_delivery(shard=shard, content=large)) for _ in range(3)]
    done, _ = await asyncio.wait(waiting, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    assert {future.result() for future in done} == {Failure.QUEUE_FULL}
    refused = registry.get_sample_value("roost_ingest_resends_total", {"cause": "refused"}) or 0
    assert refused > 1


async def test_a_deleted_queue_is_declared_again(
    make_settings: MakeSettings,
    registry: CollectorRegistry,
    shard: str,
    channel: AbstractChannel,
    store: PlayedStore,
    run: Run,
) -> None:
    """A delivery that finds no queue has it declared again and is published once more."""
    settings = make_settings()
    publisher = make_publisher(settings, registry, shard)
    run(publisher.run())
    await until(lambda: publisher.connected, "connected")
    await channel.queue_delete(queue_name(shard))
    settled = submit(publisher, make_delivery(shard=shard))
    unroutable = ("roost_ingest_resends_total", {"cause": "unroutable"})
    await until(lambda: registry.get_sample_value(*unroutable) == 1, "published again")
    await store.consume(shard, settings)
    await until(lambda: store.messages, "it arrives")
    await store.acknowledge(store.messages[0])
    assert await settlement(settled) == (STORED,)


async def test_no_route_is_answered(
    make_settings: MakeSettings, registry: CollectorRegistry, shard: str, channel: AbstractChannel, run: Run
) -> None:
    """Where the topology cannot be mended the delivery fails at once."""
    settings = make_settings()
    publisher = make_publisher(settings, registry, shard)
    run(publisher.run())
    await until(lambda: publisher.connected, "connected")
    await channel.queue_delete(queue_name(shard))
    # Other arguments than ours: from now on the declaration is refused.
    await channel.declare_queue(queue_name(shard), durable=True)
    assert await settlement(submit(publisher, make_delivery(shard=shard))) is Failure.UNROUTABLE


async def test_a_message_too_large_for_the_broker_fails_alone(
    new_broker: Callable[..., Broker], registry: CollectorRegistry, shard: str, run: Run
) -> None:
    """A broker that closes the channel over a large bundle does not get it a second time; its neighbours arrive."""
    broker = await asyncio.to_thread(new_broker, "max_message_size = 1000000")
    settings = BrokerSettings(amqp_url=broker.url)
    publisher = make_publisher(settings, registry, shard)
    run(publisher.run())
    await until(lambda: publisher.connected, "connected")
    neighbour = submit(publisher, make_delivery(shard=shard))
    large = submit(publisher, make_delivery(shard=shard, content=b"x" * 2_000_000))
    assert await settlement(large) is Failure.TOO_LARGE
    connection = await aio_pika.connect(broker.url)
    async with connection:
        store = PlayedStore(await connection.channel())
        await store.consume(shard, settings)
        await until(lambda: store.messages, "the neighbour arrives")
        await until(lambda: publisher.connected, "connected again")
        for message in store.messages:
            await store.acknowledge(message)
        await until(lambda: neighbour.done() or len(store.messages) > 1, "settled, or published again")
        await store.acknowledge(store.messages[-1])
        assert await settlement(neighbour) == (STORED,)


async def test_an_alarm_of_the_broker_shows(
    new_broker: Callable[..., Broker], registry: CollectorRegistry, shard: str, run: Run
) -> None:
    """While the broker is out of memory the publisher says that it is blocked, and no longer when it is over."""
    broker = await asyncio.to_thread(new_broker)
    publisher = make_publisher(BrokerSettings(amqp_url=broker.url), registry, shard)
    run(publisher.run())
    await until(lambda: publisher.connected, "connected")
    await asyncio.to_thread(broker.rabbitmqctl, "set_vm_memory_high_watermark", "0.00001")
    submit(publisher, make_delivery(shard=shard))
    await until(lambda: publisher.blocked, "blocked")
    await asyncio.to_thread(broker.rabbitmqctl, "set_vm_memory_high_watermark", "0.5")
    await until(lambda: not publisher.blocked, "not blocked")


async def test_a_bundle_that_the_store_cannot_read_is_deferred(
    make_settings: MakeSettings, registry: CollectorRegistry, shard: str, store: PlayedStore, run: Run
) -> None:
    """An older store says which bundle it cannot read: all recipients of it are deferred at once."""
    settings = make_settings()
    publisher = make_publisher(settings, registry, shard)
    run(publisher.run())
    await store.consume(shard, settings)
    settled = submit(publisher, make_delivery("alice", "bob", shard=shard))
    await until(lambda: store.messages, "the bundle arrives")
    await store.send(store.messages[0], b"\xffrubbish")
    await store.send(store.messages[0], Acknowledgements(unreadable=store.messages[0].message_id or ""))
    assert await settlement(settled) == (Outcome(OutcomeKind.DEFERRED, Reason.UNREADABLE),) * 2
    assert registry.get_sample_value("roost_ingest_acknowledgements_total", {"result": "unreadable"}) == 1


async def test_too_much_in_flight_is_refused_at_once(
    make_settings: MakeSettings, registry: CollectorRegistry, shard: str, run: Run
) -> None:
    """Beyond the bound a delivery fails without a wait, and what is in flight is not touched."""
    publisher = make_publisher(make_settings(), registry, shard, max_in_flight=1)
    run(publisher.run())
    first = submit(publisher, make_delivery(shard=shard))
    assert publisher.full
    assert await settlement(submit(publisher, make_delivery(shard=shard))) is Failure.OVERLOADED
    assert not first.done()
