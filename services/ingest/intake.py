"""What happens to a transaction: whether a sender and its recipients are taken, and how a message becomes deliveries.

Between the LMTP session and the publisher. Knows the directory and the words of the contract; knows no socket and no
AMQP.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import Final
from zlib import crc32

import structlog

from services.contract import DEFAULT_SHARD, Delivery, OutcomeKind, Recipient, content_key
from services.ingest import replies
from services.ingest.directory import Directory, Found, Unavailable, Unknown
from services.ingest.inflight import Failure, Settlement
from services.ingest.lmtp import RECIPIENT_OK, SENDER_OK, Address, MessageReceived, MessageRefused, Reply
from services.ingest.metrics import Metrics
from services.ingest.publisher import Publisher

log = structlog.get_logger()

# Hashing content above this size takes longer than the loop should wait.
_HASHED_IN_LOOP_BYTES: Final = 256 * 1024

# A message-id is looked for in the header only, and only so far.
_HEADER_SEARCHED_BYTES: Final = 64 * 1024
_MESSAGE_ID: Final = re.compile(rb"^message-id:\s*(<[!-=?-~]{1,250}>)", re.IGNORECASE | re.MULTILINE)

# Called with the replies that are known now, as (index of the recipient, reply); once for each recipient in the end.
Settle = Callable[[Sequence[tuple[int, Reply]]], None]

_BASE32: Final = "0123456789abcdefghjkmnpqrstvwxyz"


class Client:
    """Who speaks LMTP to us: the name it gave at LHLO and the address it comes from."""

    __slots__ = ("name", "peer")

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.name = ""


class Intake:
    """Takes transactions on behalf of every session of this process."""

    def __init__(
        self, directory: Directory, publisher: Publisher, metrics: Metrics, *, hostname: str, shards: int
    ) -> None:
        self._directory = directory
        self._publisher = publisher
        self._metrics = metrics
        self._hostname = hostname
        self._shards = shards
        self._hashing: set[asyncio.Task[None]] = set()

    def answer_sender(self) -> Reply:
        """Whether a transaction may begin: not while there is no room for its message."""
        if self._publisher.blocked or self._publisher.full:
            self._metrics.senders_refused.labels(str(replies.OVERLOADED.code)).inc()
            return replies.OVERLOADED
        return SENDER_OK

    def answer_recipient(self, address: Address) -> tuple[Reply, Found | None]:
        """Whether a recipient is taken, and where its mailbox is."""
        answer = self._directory.lookup(address.text)
        match answer:
            case Found():
                self._metrics.lookups.labels("found").inc()
                return RECIPIENT_OK, answer
            case Unknown():
                self._metrics.lookups.labels("unknown").inc()
                reply = replies.NO_SUCH_USER
            case Unavailable(detail):
                self._metrics.lookups.labels("unavailable").inc()
                log.warning("recipient not looked up", recipient=address.text, error=detail)
                reply = replies.DIRECTORY_UNAVAILABLE
        self._metrics.replies.labels(str(reply.code)).inc()
        return reply, None

    def refused(self, client: Client, message: MessageRefused) -> None:
        """Take note of a message that the session refused itself."""
        self._metrics.transactions.inc()
        self._metrics.replies.labels(str(message.reply.code)).inc(len(message.recipients))
        log.warning(
            "transaction refused",
            client=client.peer,
            sender=message.sender.text,
            recipients=[address.text for address in message.recipients],
            bytes=message.size_bytes,
            reply=message.reply.text,
        )

    def take(self, client: Client, message: MessageReceived, found: Sequence[Found], settle: Settle) -> None:
        """Deliver a message. `settle` is called until each recipient has its reply, and must not raise.

        `found` has the mailbox of each recipient.
        """
        self._metrics.transactions.inc()
        self._metrics.received_bytes.inc(len(message.content))
        if len(message.content) <= _HASHED_IN_LOOP_BYTES:
            self._submit(client, message, found, settle, content_key(message.sender.text, message.content))
            return
        task = asyncio.create_task(self._hash_and_submit(client, message, found, settle))
        self._hashing.add(task)
        task.add_done_callback(self._hashing.discard)

    async def _hash_and_submit(
        self, client: Client, message: MessageReceived, found: Sequence[Found], settle: Settle
    ) -> None:
        try:
            key = await asyncio.to_thread(content_key, message.sender.text, message.content)
            self._submit(client, message, found, settle, key)
        except Exception:
            # Our own bug, but the client is owed its replies.
            log.exception("transaction failed", client=client.peer)
            settle([(index, replies.NOT_TAKEN) for index in range(len(found))])

    def _submit(
        self,
        client: Client,
        message: MessageReceived,
        found: Sequence[Found],
        settle: Settle,
        key: bytes,
    ) -> None:
        """Make one delivery for each shard that the recipients belong to, and hand them over."""
        by_shard: dict[str, list[int]] = {}
        for index, mailbox in enumerate(found):
            by_shard.setdefault(shard_of(mailbox.mailbox, self._shards), []).append(index)
        began = time.monotonic()
        content = memoryview(message.content)
        for shard, indexes in by_shard.items():
            delivery_id = make_id()
            delivery = Delivery(
                id=delivery_id,
                key=key,
                sender=message.sender.text,
                recipients=tuple(
                    Recipient(message.recipients[index].text, found[index].mailbox, found[index].folder, shard)
                    for index in indexes
                ),
                deadline=self._publisher.delivery_deadline(),
                received=self._received(client, delivery_id),
                content=content,
                message_id=message_id(content),
            )
            finish = _Finish(self._metrics, client, delivery, indexes, settle, began)
            self._publisher.submit(delivery, finish)

    def _received(self, client: Client, delivery_id: str) -> str:
        """The trace line of RFC 5321 4.4."""
        return (
            f"Received: from {client.name} ({client.peer})\r\n"
            f"\tby {self._hostname} (Roost) with LMTP id {delivery_id};\r\n\t{_date(int(time.time()))}"
        )


@dataclass(frozen=True, slots=True)
class _Finish:
    """Turns the settlement of one delivery into replies, a log line and counts."""

    metrics: Metrics
    client: Client
    delivery: Delivery
    indexes: Sequence[int]
    settle: Settle
    began: float

    def __call__(self, settlement: Settlement) -> None:
        delivery = self.delivery
        made = []
        for place, recipient in enumerate(delivery.recipients):
            if isinstance(settlement, Failure):
                reply = replies.failure_reply(settlement, recipient.address, delivery.id)
                outcome: str = settlement
            else:
                reply = replies.outcome_reply(settlement[place], recipient.address, delivery.id)
                outcome = settlement[place].kind
            made.append(reply)
            self.metrics.outcomes.labels(outcome).inc()
            self.metrics.replies.labels(str(reply.code)).inc()
        self._log(settlement, made)
        self.settle(tuple(zip(self.indexes, made, strict=True)))

    def _log(self, settlement: Settlement, made: Sequence[Reply]) -> None:
        delivery = self.delivery
        good = not isinstance(settlement, Failure) and all(
            outcome.kind in (OutcomeKind.STORED, OutcomeKind.DUPLICATE) for outcome in settlement
        )
        (log.info if good else log.warning)(
            "transaction",
            delivery=delivery.id,
            client=self.client.peer,
            sender=delivery.sender,
            recipients=[recipient.address for recipient in delivery.recipients],
            replies=[f"{reply.code} {reply.enhanced}" for reply in made],
            reasons=settlement if isinstance(settlement, Failure) else [outcome.reason for outcome in settlement],
            message_id=delivery.message_id,
            bytes=len(delivery.content),
            seconds=round(time.monotonic() - self.began, 6),
        )


def shard_of(mailbox: str, shards: int) -> str:
    """The shard of a mailbox: stable for as long as the number of shards is."""
    return DEFAULT_SHARD if shards == 1 else str(crc32(mailbox.encode()) % shards)


def make_id() -> str:
    """A delivery id: 18 characters of lower case, sortable by time to the millisecond, unique across processes."""
    number = int(time.time() * 1000) << 45 | secrets.randbits(45)
    return "".join(_BASE32[number >> shift & 31] for shift in range(85, -1, -5))


def message_id(content: memoryview) -> str:
    """The Message-ID of a message, for the log: at most 252 printable octets; "" if it has no such one."""
    head = bytes(content[:_HEADER_SEARCHED_BYTES])
    # Content that begins with an empty line has no header (RFC 5322 2.1).
    end = -2 if head.startswith(b"\r\n") else head.find(b"\r\n\r\n")
    match = _MESSAGE_ID.search(head, 0, len(head) if end == -1 else end + 2)
    return match[1].decode("ascii") if match else ""


@lru_cache(maxsize=4)
def _date(second: int) -> str:
    return format_datetime(datetime.fromtimestamp(second, UTC))
