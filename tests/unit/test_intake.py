"""What happens to a transaction between the session and the publisher."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.contract import Outcome, OutcomeKind, Reason, content_key
from services.ingest import replies
from services.ingest.directory import Answer, Found, Unavailable, Unknown
from services.ingest.inflight import Failure
from services.ingest.intake import Client, Intake, make_id, message_id, shard_of
from services.ingest.lmtp import NULL_SENDER, RECIPIENT_OK, SENDER_OK, Address, MessageReceived, MessageRefused, Reply
from services.ingest.metrics import Metrics
from tests.support.deliveries import until
from tests.support.ingest_fakes import STORED, FakePublisher, TableDirectory, stored

CONTENT = b"Message-ID: <1@example.org>\r\nSubject: x\r\n\r\nhello\r\n"
DISK_FULL = Outcome(OutcomeKind.DEFERRED, Reason.DISK_FULL)


def address(text: str) -> Address:
    local, _, domain = text.rpartition("@")
    return Address(local, domain, text)


class Desk:
    """An intake, what is behind it, and the replies that it gave by the recipient's index."""

    def __init__(self, answers: dict[str, Answer] | None = None, shards: int = 1) -> None:
        self.registry = CollectorRegistry()
        self.publisher = FakePublisher()
        self.intake = Intake(
            TableDirectory(answers), self.publisher, Metrics(self.registry), hostname="mx.example.org", shards=shards
        )
        self.client = Client("[192.0.2.1]")
        self.client.name = "mta.example.com"
        self.replies: dict[int, Reply] = {}

    def take(self, *recipients: str, content: bytes = CONTENT, sender: Address | None = None) -> None:
        message = MessageReceived(
            sender or address("alice@example.com"), tuple(address(text) for text in recipients), content
        )
        self.intake.take(self.client, message, [Found(f"boxes/{text}") for text in recipients], self._settle)

    def _settle(self, settled: Sequence[tuple[int, Reply]]) -> None:
        for index, reply in settled:
            assert index not in self.replies, f"recipient {index} has two replies"
            self.replies[index] = reply

    def codes(self) -> list[int]:
        return [self.replies[index].code for index in sorted(self.replies)]

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"roost_ingest_{name}", labels) or 0.0


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_sender_is_taken_while_there_is_room(desk: Desk) -> None:
    """MAIL is accepted as long as the broker takes publishes and not too much is in flight."""
    assert desk.intake.answer_sender() == SENDER_OK


@pytest.mark.parametrize("want", ["blocked", "full"])
def test_a_sender_is_refused_for_want_of_room(desk: Desk, want: str) -> None:
    """Under an alarm or overload the client learns it at MAIL, before it sends the content."""
    setattr(desk.publisher, want, True)
    assert desk.intake.answer_sender() == replies.OVERLOADED
    assert desk.count("senders_refused_total", code="451") == 1


def test_recipients_are_answered_as_the_directory_says() -> None:
    """Found is accepted with its mailbox, unknown is 550, and a directory that cannot say is 451, never 550."""
    found = Found("example.org/bob", "Lists")
    desk = Desk({"bob@x": found, "eve@x": Unknown(), "dan@x": Unavailable("/secret/path broke")})
    assert desk.intake.answer_recipient(address("bob@x")) == (RECIPIENT_OK, found)
    assert desk.intake.answer_recipient(address("eve@x")) == (replies.NO_SUCH_USER, None)
    assert desk.intake.answer_recipient(address("dan@x")) == (replies.DIRECTORY_UNAVAILABLE, None)
    results = ("found", "unknown", "unavailable")
    assert [desk.count("directory_lookups_total", result=result) for result in results] == [1, 1, 1]
    assert [desk.count("recipients_total", code=code) for code in ("550", "451")] == [1, 1]


async def test_a_message_becomes_a_delivery(desk: Desk) -> None:
    """The delivery has the envelope as given, the content, its key, a deadline, the trace line and the message-id."""
    desk.take("Bob@Example.org", "carol@example.org")
    (delivery,) = desk.publisher.deliveries
    assert delivery.sender == "alice@example.com"
    assert [(r.address, r.mailbox, r.folder, r.shard) for r in delivery.recipients] == [
        ("Bob@Example.org", "boxes/Bob@Example.org", "", "0"),
        ("carol@example.org", "boxes/carol@example.org", "", "0"),
    ]
    assert delivery.content == CONTENT
    assert delivery.key == content_key("alice@example.com", CONTENT)
    assert delivery.message_id == "<1@example.org>"
    assert re.fullmatch(
        r"Received: from mta\.example\.com \(\[192\.0\.2\.1\]\)\r\n"
        rf"\tby mx\.example\.org \(Roost\) with LMTP id {delivery.id};\r\n"
        r"\t\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000",
        delivery.received,
    )


async def test_the_null_sender_is_an_empty_one(desk: Desk) -> None:
    """A bounce has the sender ""."""
    desk.take("bob@example.org", sender=NULL_SENDER)
    assert desk.publisher.deliveries[0].sender == ""


async def test_replies_come_with_the_settlement(desk: Desk) -> None:
    """Nothing is said before the store has answered; then each recipient has its own reply with the delivery id."""
    desk.take("bob@example.org", "carol@example.org")
    assert desk.replies == {}
    desk.publisher.settle(0, (STORED, DISK_FULL))
    delivery_id = desk.publisher.deliveries[0].id
    assert desk.replies == {
        0: Reply(250, "2.0.0", f"<bob@example.org> {delivery_id} Saved"),
        1: Reply(452, "4.3.1", f"<carol@example.org> {delivery_id} Out of storage"),
    }
    assert [desk.count("recipients_total", code=code) for code in ("250", "452")] == [1, 1]
    assert [desk.count("outcomes_total", outcome=outcome) for outcome in ("stored", "deferred")] == [1, 1]


async def test_a_failure_stands_for_every_recipient(desk: Desk) -> None:
    """Without an answer of the store all of the delivery's recipients are deferred."""
    desk.take("bob@example.org", "carol@example.org")
    desk.publisher.settle(0, Failure.NO_STORE)
    assert desk.codes() == [451, 451]
    assert desk.count("outcomes_total", outcome="no_store") == 2


async def test_an_address_given_twice_has_two_replies(desk: Desk) -> None:
    """Each accepted RCPT has its own place, even for one mailbox."""
    desk.take("bob@example.org", "bob@example.org")
    desk.publisher.settle(0)
    assert desk.codes() == [250, 250]


async def test_each_shard_has_its_own_delivery() -> None:
    """Recipients of several shards become several deliveries of one key, whose replies find their own recipients."""
    desk = Desk(shards=4)
    recipients = [f"user{number}@example.org" for number in range(12)]
    desk.take(*recipients)
    shards = [{recipient.shard for recipient in delivery.recipients} for delivery in desk.publisher.deliveries]
    assert sorted(shard for (shard,) in shards) == ["0", "1", "2", "3"]
    assert len({delivery.key for delivery in desk.publisher.deliveries}) == 1
    assert len({delivery.id for delivery in desk.publisher.deliveries}) == 4
    for number in (2, 0, 3):
        desk.publisher.settle(number)
    desk.publisher.settle(1, Failure.NO_STORE)
    assert sorted(desk.replies) == list(range(12))
    for index, recipient in enumerate(recipients):
        assert f"<{recipient}>" in desk.replies[index].text
    failed = {recipient.address for recipient in desk.publisher.deliveries[1].recipients}
    assert {recipients[index] for index, reply in desk.replies.items() if reply.code == 451} == failed


async def test_large_content_is_hashed_beside_the_loop(desk: Desk) -> None:
    """A large content's key is the same as a small one's would be, and its delivery comes later."""
    content = CONTENT + b"x" * 300_000
    desk.take("bob@example.org", content=content)
    assert desk.publisher.deliveries == []
    await until(lambda: desk.publisher.deliveries, "hashed")
    assert desk.publisher.deliveries[0].key == content_key("alice@example.com", content)
    desk.publisher.settle(0)
    assert desk.codes() == [250]


async def test_large_content_that_cannot_be_hashed_is_deferred(desk: Desk) -> None:
    """When no thread can be had, each recipient still gets a reply."""
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    asyncio.get_running_loop().set_default_executor(executor)
    with capture_logs() as lines:
        desk.take("bob@example.org", "carol@example.org", content=bytes(300_000))
        await until(lambda: desk.replies, "replies")
    assert desk.codes() == [451, 451]
    assert [line["log_level"] for line in lines] == ["error"]


async def test_a_refusal_at_once_is_a_reply_at_once(desk: Desk) -> None:
    """A publisher that has no room settles within the call."""
    desk.publisher.at_once = lambda _: Failure.OVERLOADED
    desk.take("bob@example.org")
    assert [(reply.code, reply.enhanced) for reply in desk.replies.values()] == [(451, "4.3.2")]


async def test_a_transaction_leaves_one_line(desk: Desk) -> None:
    """The log has the delivery id, envelope, replies, size, message-id and time, at a level that fits."""
    with capture_logs() as lines:
        desk.take("bob@example.org", "carol@example.org")
        desk.publisher.settle(0, (STORED, DISK_FULL))
    (line,) = lines
    assert line.pop("seconds") >= 0
    assert line == {
        "event": "transaction",
        "log_level": "warning",
        "delivery": desk.publisher.deliveries[0].id,
        "client": "[192.0.2.1]",
        "sender": "alice@example.com",
        "recipients": ["bob@example.org", "carol@example.org"],
        "replies": ["250 2.0.0", "452 4.3.1"],
        "reasons": ["", "disk_full"],
        "message_id": "<1@example.org>",
        "bytes": len(CONTENT),
    }


async def test_success_is_no_warning(desk: Desk) -> None:
    """A transaction that is stored or a duplicate for everyone is logged as info."""
    with capture_logs() as lines:
        desk.take("bob@example.org", "carol@example.org")
        desk.publisher.settle(0, (STORED, Outcome(OutcomeKind.DUPLICATE)))
    assert [line["log_level"] for line in lines] == ["info"]


def test_a_message_that_the_session_refused_is_counted(desk: Desk) -> None:
    """An oversize message counts as a transaction with a reply for each recipient, and leaves a line."""
    recipients = (address("bob@example.org"), address("carol@example.org"))
    with capture_logs() as lines:
        desk.intake.refused(
            desk.client, MessageRefused(address("alice@example.com"), recipients, Reply(552, "5.3.4", "Too large"), 99)
        )
    assert desk.count("recipients_total", code="552") == 2
    assert desk.count("transactions_total") == 1
    assert [(line["event"], line["bytes"]) for line in lines] == [("transaction refused", 99)]


async def test_contents_are_counted(desk: Desk) -> None:
    """Octets received are those of the contents."""
    desk.take("bob@example.org")
    assert desk.count("received_bytes_total") == len(CONTENT)
    assert desk.count("transactions_total") == 1


def test_ids_are_short_unique_and_sorted_by_time() -> None:
    """An id has 18 characters that need no quoting anywhere; no two are equal; later ones sort later."""
    ids = [make_id() for _ in range(10_000)]
    assert all(re.fullmatch("[0-9a-z]{18}", one) for one in ids)
    assert len(set(ids)) == len(ids)
    by_time = [one[:9] for one in ids]
    assert by_time == sorted(by_time)


@given(st.text(max_size=20), st.integers(1, 1024))
def test_a_shard_is_a_stable_hash_of_the_mailbox(mailbox: str, shards: int) -> None:
    """The same mailbox is always in the same shard, one of those that exist."""
    assert shard_of(mailbox, shards) == str(crc32(mailbox.encode()) % shards)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"Message-ID: <a@b>\r\n\r\n", "<a@b>"),
        (b"Subject: x\r\nmessage-id:<a@b>\r\n\r\n", "<a@b>"),
        (b"Message-ID:\r\n <a@b>\r\n\r\n", "<a@b>"),
        (b"Message-ID: <a@b>", "<a@b>"),
        (b"Subject: x\r\n\r\nMessage-ID: <a@b>\r\n", ""),
        (b"\r\nMessage-ID: <a@b>\r\n", ""),
        (b"X-Message-ID: <a@b>\r\n\r\n", ""),
        (b"Message-ID: a@b\r\n\r\n", ""),
        (b"Message-ID: <a\xff@b>\r\n\r\n", ""),
        (b"Message-ID: <" + b"a" * 250 + b">\r\n\r\n", "<" + "a" * 250 + ">"),
        (b"Message-ID: <" + b"a" * 251 + b">\r\n\r\n", ""),
        (b"X: " + b"x" * 70_000 + b"\r\nMessage-ID: <a@b>\r\n\r\n", ""),
        (b"", ""),
    ],
)
def test_the_message_id(content: bytes, expected: str) -> None:
    """The Message-ID is found in the header only, folded or not, if it is short and printable."""
    assert message_id(memoryview(content)) == expected


def test_success_is_for_every_recipient() -> None:
    """The fake publisher's default answers for each recipient (so that the tests above mean something)."""
    desk = Desk()
    desk.publisher.at_once = stored
    desk.take("bob@example.org", "carol@example.org")
    assert desk.codes() == [250, 250]
