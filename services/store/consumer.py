"""Moves bundles from the queue to the file code and outcomes back: consumes, batches, acknowledges, settles.

Knows AMQP and the contract. Knows no file: `deliver` does that, in a thread of its own, one batch after the other.

One connection consumes and settles, another publishes acknowledgements (`acknowledger`), since a broker that blocks
publishers must not stop settling. A bundle is settled after the broker has confirmed its acknowledgement; if its
connection is lost before, it comes again, and so does its outcome.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import structlog
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage, AbstractQueue

from services.broker import declare_exchange, declare_work_queue, keep_connected, lost_peer, until_channel_ends
from services.contract import (
    Acknowledgement,
    Acknowledgements,
    Bundle,
    Delivery,
    Outcome,
    OutcomeKind,
    Reason,
    UnreadableError,
    decode_bundle,
)
from services.store.accounting import account
from services.store.acknowledger import Acknowledger
from services.store.metrics import Metrics
from services.store.report import DeliveryReport
from services.store.settings import StoreSettings

log = structlog.get_logger()

# What is written together. Larger batches save fsyncs, but the first client of a batch waits for the last.
_BATCH_DELIVERIES: Final = 256
_BATCH_BYTES: Final = 16 * 1024 * 1024
# Batches whose acknowledgements are under way while the next ones are written.
_BATCHES_AHEAD: Final = 4

_NOT_IN_TIME: Final = Outcome(OutcomeKind.DEFERRED, Reason.IO_ERROR)
_BUG: Final = Outcome(OutcomeKind.DEFERRED, Reason.UNSPECIFIED)

Deliver = Callable[[Sequence[Delivery]], list[DeliveryReport]]


class _Consumption:
    """One channel that consumes and settles, until it is gone."""

    def __init__(self, queue: AbstractQueue) -> None:
        self.queue = queue
        self.tag = ""
        self._settled_through = 0

    async def settle(self, messages: Sequence[AbstractIncomingMessage]) -> None:
        """Acknowledge messages of this channel to the broker; all at once if nothing before them is open."""
        tags = sorted(message.delivery_tag or 0 for message in messages)
        contiguous = tags == list(range(self._settled_through + 1, self._settled_through + 1 + len(tags)))
        try:
            if contiguous:
                self._settled_through = tags[-1]
                await max(messages, key=lambda message: message.delivery_tag or 0).ack(multiple=True)
            else:
                for message in messages:
                    await message.ack()
        except BaseException as error:
            if not lost_peer(error):
                raise
            # The bundles of a lost channel come again; what is stored is stored.


@dataclass(slots=True)
class _Arrival:
    """A bundle that came from the queue. `unreadable` is why it has no deliveries."""

    consumption: _Consumption
    message: AbstractIncomingMessage
    bundle: Bundle
    unreadable: str = ""


@dataclass(slots=True)
class _Written:
    """Bundles that were written together, and their outcomes."""

    arrivals: list[_Arrival]
    acknowledgements: list[tuple[Acknowledgement, ...]]  # of each arrival


class Consumer:
    """Owns the connection that consumes, and the thread that writes. `run` must be running."""

    def __init__(self, settings: StoreSettings, deliver: Deliver, acknowledger: Acknowledger, metrics: Metrics) -> None:
        self._settings = settings
        self._deliver = deliver
        self._acknowledger = acknowledger
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "writer")
        # Bounded by the prefetch count.
        self._arrived: asyncio.Queue[_Arrival] = asyncio.Queue()
        self._written: asyncio.Queue[_Written] = asyncio.Queue(_BATCHES_AHEAD)
        self._writing: asyncio.Future[tuple[list[DeliveryReport], float]] | None = None
        self._consumption: _Consumption | None = None
        self._open_bundles = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        self.overdue = False
        metrics.in_progress.set_function(lambda: self._open_bundles)
        metrics.broker_connected.set_function(lambda: self.connected and acknowledger.connected)

    @property
    def connected(self) -> bool:
        """Whether bundles can come."""
        return self._consumption is not None

    async def run(self) -> None:
        """Consume, deliver and acknowledge, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keep_connected(self._settings, f"store {self._settings.shard} work", self._consume))
            tasks.create_task(self._write_batches())
            tasks.create_task(self._finish_batches())

    async def drain(self, timeout_s: float) -> bool:
        """Take no more bundles, give back those that are not begun, finish the others. False if that took too long."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._stop_consuming()
                while not self._arrived.empty():
                    await self._give_back(self._arrived.get_nowait().message)
                await self._idle.wait()
        except TimeoutError:
            return False
        self._thread.shutdown(wait=False)
        return True

    # From the queue

    async def _consume(self, connection: AbstractConnection) -> None:
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=self._settings.prefetch)
        exchange = await declare_exchange(channel)
        queue = await declare_work_queue(channel, exchange, self._settings.shard, self._settings.queue_policy)
        consumption = _Consumption(queue)

        async def on_message(message: AbstractIncomingMessage) -> None:
            await self._on_message(consumption, message)

        consumption.tag = await queue.consume(on_message)
        self._consumption = consumption
        try:
            if await until_channel_ends(channel):
                self._metrics.consumer_cancelled.inc()
                log.warning("the broker ended the consumption")
        finally:
            self._consumption = None
            self._forget_arrivals()

    async def _stop_consuming(self) -> None:
        if self._consumption is None:
            return
        try:
            await self._consumption.queue.cancel(self._consumption.tag)
        except BaseException as error:
            if not lost_peer(error):
                raise

    def _forget_arrivals(self) -> None:
        """The channel is gone: what has not been begun comes again, here or elsewhere."""
        while not self._arrived.empty():
            self._arrived.get_nowait()
            self._count_open(-1)

    async def _on_message(self, consumption: _Consumption, message: AbstractIncomingMessage) -> None:
        self._count_open(1)
        if self.draining:
            await self._give_back(message)
            return
        try:
            arrival = _Arrival(consumption, message, decode_bundle(message.body))
            self._metrics.bundles.labels("redelivered" if message.redelivered else "new").inc()
        except UnreadableError as error:
            # It keeps its place in the order of settling, but there is nothing to deliver.
            arrival = _Arrival(consumption, message, Bundle(()), str(error))
            self._metrics.bundles.labels("unreadable").inc()
            log.error("unreadable bundle", bundle=message.message_id, error=str(error))  # noqa: TRY400 - a peer's bug
        self._arrived.put_nowait(arrival)

    async def _give_back(self, message: AbstractIncomingMessage) -> None:
        self._metrics.given_back.inc()
        try:
            await message.nack(requeue=True)
        except BaseException as error:
            if not lost_peer(error):
                raise
        self._count_open(-1)

    def _count_open(self, change: int) -> None:
        self._open_bundles += change
        if self._open_bundles:
            self._idle.clear()
        else:
            self._idle.set()

    # To the disk

    async def _write_batches(self) -> None:
        while True:
            arrivals = await self._take_batch()
            deliveries = [delivery for arrival in arrivals for delivery in arrival.bundle.deliveries]
            now = time.time()
            for arrival in arrivals:
                self._metrics.queue_wait_seconds.observe(max(0.0, now - arrival.bundle.published_at))
            outcomes = await self._write(deliveries)
            acknowledgements = [
                tuple(Acknowledgement(delivery.id, outcomes.pop(0)) for delivery in arrival.bundle.deliveries)
                for arrival in arrivals
            ]
            await self._written.put(_Written(arrivals, acknowledgements))

    async def _take_batch(self) -> list[_Arrival]:
        """What has arrived: one bundle at least, and more within the bounds of a batch; never waits for more."""
        arrivals = [await self._arrived.get()]
        count, size = len(arrivals[0].bundle.deliveries), len(arrivals[0].message.body)
        while not self._arrived.empty() and count < _BATCH_DELIVERIES and size < _BATCH_BYTES:
            arrival = self._arrived.get_nowait()
            arrivals.append(arrival)
            count += len(arrival.bundle.deliveries)
            size += len(arrival.message.body)
        return arrivals

    async def _write(self, deliveries: list[Delivery]) -> list[tuple[Outcome, ...]]:
        """The outcomes of each delivery, within the store's budget."""
        if not deliveries:
            return []
        writing = await self._begin(deliveries)
        if writing is None:
            self.overdue = True
            self._metrics.overdue_batches.inc()
            log.error("batch overdue", count=len(deliveries), deliveries=[delivery.id for delivery in deliveries[:20]])
            return [(_NOT_IN_TIME,) * len(delivery.recipients) for delivery in deliveries]
        self.overdue = False
        try:
            reports, seconds = writing.result()
        except Exception:
            log.exception("batch failed", deliveries=[delivery.id for delivery in deliveries[:20]])
            return [(_BUG,) * len(delivery.recipients) for delivery in deliveries]
        self._metrics.batch_size.observe(len(deliveries))
        self._metrics.batch_seconds.observe(seconds)
        for delivery, report in zip(deliveries, reports, strict=True):
            account(delivery, report, seconds, self._metrics)
        return [report.outcomes for report in reports]

    async def _begin(self, deliveries: list[Delivery]) -> asyncio.Future[tuple[list[DeliveryReport], float]] | None:
        """Write a batch; None if the disk does not answer within the store's budget.

        Then the clients are told to come back, whatever becomes of the batch, and nothing is written until the thread
        is free again.
        """
        budget_s = self._settings.store_budget_s
        if self._writing and (await asyncio.wait({self._writing}, timeout=budget_s))[1]:
            return None
        self._writing = asyncio.get_running_loop().run_in_executor(self._thread, self._deliver_timed, deliveries)
        _, pending = await asyncio.wait({self._writing}, timeout=budget_s)
        return None if pending else self._writing

    def _deliver_timed(self, deliveries: Sequence[Delivery]) -> tuple[list[DeliveryReport], float]:
        began = time.monotonic()
        reports = self._deliver(deliveries)
        return reports, time.monotonic() - began

    # Back

    async def _finish_batches(self) -> None:
        while True:
            written = await self._written.get()
            for reply_to, acknowledgements in self._by_ingest(written):
                await self._acknowledge(reply_to, acknowledgements)
            for consumption in {arrival.consumption: None for arrival in written.arrivals}:
                await consumption.settle([a.message for a in written.arrivals if a.consumption is consumption])
            self._count_open(-len(written.arrivals))

    @staticmethod
    def _by_ingest(written: _Written) -> list[tuple[str, Acknowledgements]]:
        """One message for each ingest that waits, and one for each bundle that could not be read."""
        outcomes: dict[str, list[Acknowledgement]] = {}
        unreadable = []
        for arrival, acknowledgements in zip(written.arrivals, written.acknowledgements, strict=True):
            reply_to = arrival.message.reply_to or ""
            if arrival.unreadable:
                unreadable.append((reply_to, Acknowledgements(unreadable=arrival.message.message_id or "")))
            else:
                outcomes.setdefault(reply_to, []).extend(acknowledgements)
        readable = [(reply_to, Acknowledgements(tuple(items))) for reply_to, items in outcomes.items()]
        return [(reply_to, message) for reply_to, message in readable + unreadable if reply_to]

    async def _acknowledge(self, reply_to: str, acknowledgements: Acknowledgements) -> None:
        """Tell an ingest; after its deadline nobody listens any more."""
        try:
            async with asyncio.timeout(self._settings.ack_deadline_s):
                await self._acknowledger.publish(reply_to, acknowledgements)
        except TimeoutError:
            log.warning("acknowledgements not sent", deliveries=[a.id for a in acknowledgements.acknowledgements[:20]])
