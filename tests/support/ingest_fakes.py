"""What stands behind ingest's sessions in unit tests: a publisher and a directory that do as they are told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from services.contract import Delivery, Outcome, OutcomeKind
from services.ingest.directory import Answer, Found, Unknown
from services.ingest.inflight import Settlement

STORED = Outcome(OutcomeKind.STORED, file="f")


class TableDirectory:
    """A directory from a dictionary; without one, everybody has a mailbox."""

    def __init__(self, answers: Mapping[str, Answer] | None = None) -> None:
        self._answers = answers

    def lookup(self, address: str) -> Answer:
        if self._answers is None:
            return Found(address)
        return self._answers.get(address, Unknown())

    def status(self) -> tuple[bool, str]:
        return True, "a table"

    async def run(self) -> None:
        return


class FakePublisher:
    """Keeps what is submitted until `settle`; `at_once` answers in `submit` itself, and may raise."""

    connected = True

    def __init__(self) -> None:
        self.blocked = False
        self.full = False
        self.at_once: Callable[[Delivery], Settlement | None] = lambda _: None
        self.deliveries: list[Delivery] = []
        self._settled: dict[str, Callable[[Settlement], None]] = {}

    def delivery_deadline(self) -> float:
        return time.time() + 50

    def submit(self, delivery: Delivery, settled: Callable[[Settlement], None]) -> None:
        self.deliveries.append(delivery)
        settlement = self.at_once(delivery)
        if settlement is None:
            self._settled[delivery.id] = settled
        else:
            settled(settlement)

    def settle(self, number: int = 0, settlement: Settlement | None = None) -> None:
        """Settle the delivery that came as this one; by default it is stored for all its recipients."""
        delivery = self.deliveries[number]
        self._settled.pop(delivery.id)(settlement or stored(delivery))


def stored(delivery: Delivery) -> Settlement:
    """Success for every recipient."""
    return (STORED,) * len(delivery.recipients)
