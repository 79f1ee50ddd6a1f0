"""Deliveries in flight: each settles exactly once, whatever happens to it, and nothing of it stays behind."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from prometheus_client import CollectorRegistry

from services.contract import Acknowledgement, Outcome, OutcomeKind, Reason, encoded_size_bound
from services.ingest.inflight import Failure, InFlight, Item, Settlement
from services.ingest.metrics import Metrics
from tests.support.deliveries import make_delivery

STORED = Outcome(OutcomeKind.STORED, file="f")
DEFERRED = Outcome(OutcomeKind.DEFERRED, Reason.UNSPECIFIED)
BUNDLE_BYTES = 512 * 1024


class Flights:
    """An InFlight, and the settlements that it gave, by delivery id."""

    def __init__(self, max_deliveries: int = 1000, max_bytes: int = 1 << 30) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = InFlight(
            Metrics(self.registry), shards=["0", "1"], max_deliveries=max_deliveries, max_bytes=max_bytes
        )
        self.settlements: dict[str, list[Settlement]] = {}

    def add(self, *mailboxes: str, shard: str = "0", size: int = 10, now: float = 0.0) -> str:
        delivery = make_delivery(*mailboxes, shard=shard, content=bytes(size))
        self.settlements[delivery.id] = []
        self.in_flight.add(delivery, self.settlements[delivery.id].append, now)
        return delivery.id

    def publish(self, attempt: str = "attempt", shard: str = "0") -> list[Item]:
        items = self.in_flight.take_bundle(shard)
        for item in items:
            item.attempt = attempt
        return items

    def acknowledge(self, delivery_id: str, *outcomes: Outcome, now: float = 1.0) -> None:
        self.in_flight.acknowledge(Acknowledgement(delivery_id, outcomes), now)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"roost_ingest_{name}", labels) or 0.0


@pytest.fixture
def flights() -> Flights:
    return Flights()


def ids(items: list[Item]) -> list[str]:
    return [item.delivery.id for item in items]


def test_an_acknowledgement_settles_with_its_outcomes(flights: Flights) -> None:
    """The outcomes come back as the store gave them, in the order of the recipients, once."""
    one = flights.add("alice", "bob", now=2.0)
    flights.publish()
    flights.acknowledge(one, STORED, DEFERRED, now=5.0)
    assert flights.settlements[one] == [(STORED, DEFERRED)]
    assert flights.count("acknowledgements_total", result="matched") == 1
    assert flights.count("acknowledgement_seconds_sum") == 3.0


def test_a_second_acknowledgement_is_late(flights: Flights) -> None:
    """A delivery that was resent is acknowledged twice; the second finds nobody waiting."""
    one = flights.add()
    flights.publish()
    flights.acknowledge(one, STORED)
    flights.acknowledge(one, DEFERRED)
    assert flights.settlements[one] == [(STORED,)]
    assert flights.count("acknowledgements_total", result="late") == 1


def test_an_acknowledgement_for_nobody_is_late(flights: Flights) -> None:
    """An acknowledgement of a delivery that this process never had is counted and does no harm."""
    flights.acknowledge("nobody", STORED)
    assert flights.count("acknowledgements_total", result="late") == 1


def test_missing_outcomes_count_as_deferred(flights: Flights) -> None:
    """A store that forgets recipients does not shift or shorten the replies of the others."""
    one = flights.add("alice", "bob", "carol")
    flights.acknowledge(one, STORED)
    assert flights.settlements[one] == [(STORED, DEFERRED, DEFERRED)]


def test_surplus_outcomes_are_dropped(flights: Flights) -> None:
    """A store that answers for more recipients than there are adds no replies."""
    one = flights.add("alice")
    flights.acknowledge(one, STORED, DEFERRED, DEFERRED)
    assert flights.settlements[one] == [(STORED,)]


def test_an_acknowledgement_without_outcomes_defers_everyone(flights: Flights) -> None:
    """No outcome at all is no success."""
    one = flights.add("alice", "bob")
    flights.acknowledge(one)
    assert flights.settlements[one] == [(DEFERRED, DEFERRED)]


def test_what_waits_can_be_acknowledged(flights: Flights) -> None:
    """A delivery that waits to be published again, and whose first publish is acknowledged now, is not sent again."""
    one, two = flights.add(), flights.add()
    flights.in_flight.publish_again(flights.publish(), "connection_lost")
    flights.acknowledge(one, STORED)
    assert ids(flights.publish()) == [two]


def test_an_unreadable_bundle_defers_all_in_it(flights: Flights) -> None:
    """Deliveries of a bundle that the store could not decode are deferred; those of other bundles go on waiting."""
    one, two = flights.add("alice", "bob"), flights.add()
    flights.publish("first")
    three = flights.add()
    flights.publish("second")
    flights.in_flight.refuse_unreadable("first")
    unreadable = Outcome(OutcomeKind.DEFERRED, Reason.UNREADABLE)
    assert flights.settlements == {one: [(unreadable, unreadable)], two: [(unreadable,)], three: []}


def test_an_unreadable_bundle_of_an_older_attempt_settles_nothing(flights: Flights) -> None:
    """Only the latest attempt counts: what is on its way again may still be stored."""
    one = flights.add()
    flights.in_flight.publish_again(flights.publish("first"), "connection_lost")
    flights.in_flight.refuse_unreadable("first")
    flights.publish("second")
    flights.in_flight.refuse_unreadable("first")
    assert flights.settlements[one] == []


def test_a_second_settlement_does_nothing(flights: Flights) -> None:
    """Whatever comes first stands: two verdicts on one delivery are one settlement."""
    flights.add()
    (item,) = flights.publish()
    flights.in_flight.settle(item, Failure.UNROUTABLE)
    flights.in_flight.settle(item, Failure.QUEUE_FULL)
    assert flights.settlements[item.delivery.id] == [Failure.UNROUTABLE]


def test_bundles_keep_the_order(flights: Flights) -> None:
    """What was handed over first is published first."""
    added = [flights.add() for _ in range(100)]
    assert ids(flights.publish()) + ids(flights.publish()) == added


def test_a_bundle_is_bounded_in_count(flights: Flights) -> None:
    """At most 64 deliveries travel together."""
    for _ in range(65):
        flights.add(size=1)
    assert [len(flights.publish()), len(flights.publish()), len(flights.publish())] == [64, 1, 0]


def test_a_bundle_is_bounded_in_bytes(flights: Flights) -> None:
    """What travels together is at most half a MiB."""
    for _ in range(10):
        flights.add(size=100_000)
    bundle = flights.publish()
    assert len(bundle) == 5
    assert sum(item.size for item in bundle) <= BUNDLE_BYTES


@pytest.mark.parametrize("before", [0, 1])
def test_a_large_delivery_travels_alone(flights: Flights, before: int) -> None:
    """A delivery above the bound is published, but with no other, wherever it stands."""
    first = [flights.add() for _ in range(before)]
    large, after = flights.add(size=BUNDLE_BYTES), flights.add()
    if before:
        assert ids(flights.publish()) == first
    assert [ids(flights.publish()), ids(flights.publish())] == [[large], [after]]


def test_shards_do_not_mix(flights: Flights) -> None:
    """A bundle holds deliveries of one shard."""
    zero, one = flights.add(shard="0"), flights.add(shard="1")
    assert ids(flights.publish(shard="1")) == [one]
    assert ids(flights.publish(shard="0")) == [zero]


def test_what_was_lost_goes_before_what_came_later(flights: Flights) -> None:
    """Deliveries that are published again keep their order, ahead of the later ones, and are counted by the cause."""
    first, second = flights.add(), flights.add()
    lost = flights.publish()
    later = flights.add()
    flights.in_flight.publish_again(lost, "connection_lost")
    assert flights.in_flight.published() == []
    assert ids(flights.publish()) == [first, second, later]
    assert flights.count("resends_total", cause="connection_lost") == 2


def test_what_is_settled_is_not_published_again(flights: Flights) -> None:
    """A resend leaves out what has its outcome already."""
    one, two = flights.add(), flights.add()
    lost = flights.publish()
    flights.acknowledge(one, STORED)
    assert ids(flights.in_flight.published()) == [two]
    flights.in_flight.publish_again(lost, "connection_lost")
    assert ids(flights.publish()) == [two]
    assert flights.count("resends_total", cause="connection_lost") == 1


def test_expiry_settles_the_old_ones_only(flights: Flights) -> None:
    """What was handed over at or before a time fails, published or not; what came later goes on."""
    published = flights.add(now=1.0)
    flights.publish()
    waiting, young = flights.add(now=2.0), flights.add(now=3.0)
    flights.in_flight.expire(2.0, Failure.NO_STORE)
    assert flights.settlements == {published: [Failure.NO_STORE], waiting: [Failure.NO_STORE], young: []}
    assert ids(flights.publish()) == [young]


def test_an_acknowledgement_after_expiry_is_late(flights: Flights) -> None:
    """The client has its 4xx; a later outcome changes nothing."""
    one = flights.add(now=1.0)
    flights.publish()
    flights.in_flight.expire(1.0, Failure.NO_STORE)
    flights.acknowledge(one, STORED)
    assert flights.settlements[one] == [Failure.NO_STORE]
    assert flights.count("acknowledgements_total", result="late") == 1


class Content(bytearray):
    """Bytes whose end can be seen."""


def hold_content(in_flight: InFlight, now: float) -> weakref.ref[Content]:
    content = Content(100)
    delivery = msgspec.structs.replace(make_delivery(), content=memoryview(content))
    in_flight.add(delivery, lambda _: None, now)
    return weakref.ref(content)


def test_expiry_frees_the_contents_of_what_waits(flights: Flights) -> None:
    """While no broker is connected nobody takes bundles, and expired contents must not fill the memory."""
    contents = [hold_content(flights.in_flight, float(now)) for now in range(3)]
    flights.in_flight.expire(1.0, Failure.BROKER_LOST)
    gc.collect()
    assert [content() is None for content in contents] == [True, True, False]


def test_settling_frees_the_room(flights: Flights) -> None:
    """Count and bytes of what is in flight go back to nothing."""
    one = flights.add(size=1000)
    assert (len(flights.in_flight), flights.in_flight.bytes >= 1000) == (1, True)
    flights.acknowledge(one, STORED)
    assert (len(flights.in_flight), flights.in_flight.bytes) == (0, 0)


def test_it_is_full_at_the_number_of_deliveries() -> None:
    """The bound in count is exact."""
    flights = Flights(max_deliveries=2)
    one = flights.add()
    assert not flights.in_flight.full
    flights.add()
    assert flights.in_flight.full
    flights.acknowledge(one, STORED)
    assert not flights.in_flight.full


def test_it_is_full_at_the_number_of_bytes() -> None:
    """The bound in bytes is passed by at most the last delivery."""
    flights = Flights(max_bytes=encoded_size_bound(make_delivery(content=bytes(1000))) + 1)
    flights.add(size=1000)
    assert not flights.in_flight.full
    flights.add(size=1000)
    assert flights.in_flight.full


def test_the_oldest_tells_its_age(flights: Flights) -> None:
    """The age is that of the oldest delivery that is not settled, 0 if there is none."""
    assert flights.in_flight.oldest_s(9.0) == 0.0
    one = flights.add(now=1.0)
    flights.add(now=4.0)
    assert flights.in_flight.oldest_s(9.0) == 8.0
    flights.acknowledge(one, STORED)
    assert flights.in_flight.oldest_s(9.0) == 5.0


class EveryPath(RuleBasedStateMachine):
    """Any order of events; in the end every delivery has one settlement."""

    def __init__(self) -> None:
        super().__init__()
        self.flights = Flights()
        self.now = 0.0
        self.taken: list[list[Item]] = []

    @rule(shard=st.sampled_from("01"), size=st.sampled_from([1, 200_000, BUNDLE_BYTES]))
    def add(self, shard: str, size: int) -> None:
        self.now += 1
        self.flights.add(shard=shard, size=size, now=self.now)

    @rule(shard=st.sampled_from("01"))
    def publish(self, shard: str) -> None:
        items = self.flights.publish(f"attempt{len(self.taken)}", shard)
        assert all(item.settled for item in items)
        self.taken.append(items)

    @rule(data=st.data(), outcomes=st.integers(0, 2))
    def acknowledge(self, data: st.DataObject, outcomes: int) -> None:
        known = sorted(self.flights.settlements)
        if known:
            self.flights.acknowledge(data.draw(st.sampled_from(known)), *(STORED,) * outcomes, now=self.now)

    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        if self.taken:
            number = data.draw(st.integers(0, len(self.taken) - 1))
            attempt = f"attempt{number}"
            current = [item for item in self.taken[number] if item.attempt == attempt]
            self.flights.in_flight.publish_again(current, "refused")

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        if self.taken:
            for item in data.draw(st.sampled_from(self.taken)):
                self.flights.in_flight.settle(item, Failure.UNROUTABLE)

    @rule(data=st.data())
    def unreadable(self, data: st.DataObject) -> None:
        self.flights.in_flight.refuse_unreadable(f"attempt{data.draw(st.integers(0, 9))}")

    @rule()
    def lose_the_connection(self) -> None:
        self.flights.in_flight.publish_again(self.flights.in_flight.published(), "connection_lost")

    @rule(age=st.integers(0, 5))
    def expire(self, age: int) -> None:
        self.flights.in_flight.expire(self.now - age, Failure.NO_STORE)

    @invariant()
    def the_books_agree(self) -> None:
        open_ids = [key for key, settlements in self.flights.settlements.items() if not settlements]
        assert all(len(settlements) <= 1 for settlements in self.flights.settlements.values())
        assert len(self.flights.in_flight) == len(open_ids)
        assert (self.flights.in_flight.bytes == 0) is (not open_ids)

    def teardown(self) -> None:
        published = {item.delivery.id for item in self.flights.in_flight.published()}
        waiting: Counter[str] = Counter()
        for shard in "01":
            while items := self.flights.in_flight.take_bundle(shard):
                waiting.update(ids(items))
        assert all(count == 1 for count in waiting.values()), "a delivery waits twice"
        open_ids = {key for key, settlements in self.flights.settlements.items() if not settlements}
        assert published | set(waiting) == open_ids, "a delivery neither waits nor is under way"
        assert not published & set(waiting), "a delivery that is under way waits as well"
        self.flights.in_flight.expire(self.now, Failure.NO_STORE)
        assert all(len(settlements) == 1 for settlements in self.flights.settlements.values())


TestEveryPath = EveryPath.TestCase
