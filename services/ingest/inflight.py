"""Deliveries in flight: what waits to be published, what waits for its acknowledgement, and when waiting ends.

Pure bookkeeping. Knows the contract; knows no broker, no event loop and no LMTP. The publisher moves the bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Final

import structlog

from services.contract import Acknowledgement, Delivery, Outcome, OutcomeKind, Reason, encoded_size_bound
from services.ingest.metrics import Metrics

log = structlog.get_logger()

# What travels together. A bundle of small messages is bounded by count, larger ones by bytes; a delivery above the
# bound travels alone.
_BUNDLE_DELIVERIES: Final = 64
_BUNDLE_BYTES: Final = 512 * 1024


class Failure(StrEnum):
    """Why a delivery has no outcomes from a store. It may still be stored later, so every one of them means 4xx."""

    NO_STORE = "no_store"
    BROKER_LOST = "broker_lost"
    QUEUE_FULL = "queue_full"
    OVERLOADED = "overloaded"
    UNROUTABLE = "unroutable"
    TOO_LARGE = "too_large"


# One outcome per recipient, in their order; or why there are none.
Settlement = tuple[Outcome, ...] | Failure


class Item:
    """A delivery in flight."""

    __slots__ = ("attempt", "began", "delivery", "refusals", "settled", "size")

    def __init__(self, delivery: Delivery, settled: Callable[[Settlement], None], began: float) -> None:
        self.delivery = delivery
        self.settled: Callable[[Settlement], None] | None = settled
        self.began = began
        self.size = encoded_size_bound(delivery)
        self.attempt = ""  # the message id of its latest publish; "" while it waits to be published
        self.refusals = 0

    @property
    def shard(self) -> str:
        """Where it goes."""
        return self.delivery.recipients[0].shard


class InFlight:
    """Every delivery from its hand-over until it is settled, exactly once.

    Times are seconds of a monotonic clock; the same one for all calls.
    """

    def __init__(self, metrics: Metrics, *, shards: Iterable[str], max_deliveries: int, max_bytes: int) -> None:
        self._metrics = metrics
        self._max_deliveries = max_deliveries
        self._max_bytes = max_bytes
        self._waiting: dict[str, deque[Item]] = {shard: deque() for shard in shards}
        # In the order of hand-over, which is the order of their deadlines.
        self._items: dict[str, Item] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether a further delivery would be refused."""
        return len(self._items) >= self._max_deliveries or self.bytes >= self._max_bytes

    def oldest_s(self, now: float) -> float:
        """Age of the oldest delivery in flight; 0 if there is none."""
        oldest = next(iter(self._items.values()), None)
        return now - oldest.began if oldest else 0.0

    def add(self, delivery: Delivery, settled: Callable[[Settlement], None], now: float) -> None:
        """Let a delivery wait for its publish. `settled` is called once, and must not raise."""
        item = Item(delivery, settled, now)
        self._items[delivery.id] = item
        self.bytes += item.size
        self._waiting[item.shard].append(item)

    # Publishing

    def take_bundle(self, shard: str) -> list[Item]:
        """What goes into the next bundle: as much as waits, within the bounds; empty if nothing waits."""
        waiting = self._waiting[shard]
        items: list[Item] = []
        size = 0
        self._skip_settled(waiting)
        while waiting and len(items) < _BUNDLE_DELIVERIES and (not items or size + waiting[0].size <= _BUNDLE_BYTES):
            item = waiting.popleft()
            items.append(item)
            size += item.size
            self._skip_settled(waiting)
        return items

    @staticmethod
    def _skip_settled(waiting: deque[Item]) -> None:
        while waiting and waiting[0].settled is None:
            waiting.popleft()

    def publish_again(self, items: Sequence[Item], cause: str) -> None:
        """They were lost, or refused: let them wait for another publish, before what came later."""
        lost = [item for item in items if item.settled]
        for item in reversed(lost):
            item.attempt = ""
            self._waiting[item.shard].appendleft(item)
        if lost:
            self._metrics.resends.labels(cause).inc(len(lost))
            log.warning("publishing again", cause=cause, count=len(lost), first=lost[0].delivery.id)

    def published(self) -> list[Item]:
        """Those that were published and are not settled."""
        return [item for item in self._items.values() if item.attempt]

    # Settling

    def acknowledge(self, acknowledgement: Acknowledgement, now: float) -> None:
        """Settle a delivery with the outcomes that its store gave; what the store left out counts as deferred."""
        item = self._items.get(acknowledgement.id)
        if item is None:
            # Its client was told to come back; the store will know it then.
            self._metrics.acknowledgements.labels("late").inc()
            return
        self._metrics.acknowledgements.labels("matched").inc()
        self._metrics.acknowledgement_seconds.observe(now - item.began)
        expected = len(item.delivery.recipients)
        missing = (Outcome(OutcomeKind.DEFERRED, Reason.UNSPECIFIED),) * (expected - len(acknowledgement.outcomes))
        self.settle(item, (*acknowledgement.outcomes[:expected], *missing))

    def refuse_unreadable(self, attempt: str) -> None:
        """A store, of an older version perhaps, could not decode the bundle with this message id."""
        outcome = Outcome(OutcomeKind.DEFERRED, Reason.UNREADABLE)
        for item in [item for item in self._items.values() if item.attempt == attempt]:
            self.settle(item, (outcome,) * len(item.delivery.recipients))

    def expire(self, began_before: float, failure: Failure) -> None:
        """Settle those that were handed over before a time."""
        while self._items:
            item = next(iter(self._items.values()))
            if item.began > began_before:
                break
            self.settle(item, failure)
        # Nobody may come to publish them, and their contents must not stay.
        for waiting in self._waiting.values():
            self._skip_settled(waiting)

    def settle(self, item: Item, settlement: Settlement) -> None:
        """End an item's flight; a second time does nothing."""
        settled, item.settled = item.settled, None
        if settled is None:
            return
        del self._items[item.delivery.id]
        self.bytes -= item.size
        settled(settlement)
