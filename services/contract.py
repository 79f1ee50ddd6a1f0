"""What ingest and store agree on: deliveries one way, acknowledgements back, and the queues that carry them.

Pure: knows no event loop, no AMQP client and no file system. The two services may run different versions of this
module at the same time, so every change must keep these rules: an unknown field is ignored, a new field has a default,
an unknown outcome kind reads as "deferred" and an unknown reason as "unspecified". What cannot keep them takes a new
queue version.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Final

import msgspec

EXCHANGE: Final = "mail.deliver"
BUNDLE_TYPE: Final = "roost.bundle"
ACKNOWLEDGEMENTS_TYPE: Final = "roost.acknowledgements"
DEFAULT_SHARD: Final = "0"

# The longest path of a mailbox and its folder: a local part of 64 octets, a domain of 255, a slash.
MAX_MAILBOX_BYTES: Final = 320

# RabbitMQ refuses to change the arguments of an existing queue (406), so a change of them takes a new name.
_QUEUE_VERSION: Final = "v1"

# What an AMQP message holds beside the contents. Of one delivery: 320 for the sender, about 700 for the trace line with
# two host names of 255, 252 for the Message-ID, framing. Of one recipient: 320 for each address, 320 for the path.
_DELIVERY_OVERHEAD_BYTES: Final = 2048
_RECIPIENT_OVERHEAD_BYTES: Final = 1024


class OutcomeKind(StrEnum):
    """What became of a delivery for one recipient."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    DEFERRED = "deferred"
    REJECTED = "rejected"

    @classmethod
    def _missing_(cls, _value: object) -> OutcomeKind:
        """An outcome that a newer store invented is not known to be success, and not known to be final."""
        return cls.DEFERRED


class Reason(StrEnum):
    """Why an outcome is not `stored`. Ingest turns it into a reply; the details stay in the store's log."""

    NONE = ""
    OVER_QUOTA = "over_quota"
    DISK_FULL = "disk_full"
    PERMISSION = "permission"
    READ_ONLY = "read_only"
    IO_ERROR = "io_error"
    EXPIRED = "expired"
    UNREADABLE = "unreadable"
    UNSPECIFIED = "unspecified"

    @classmethod
    def _missing_(cls, _value: object) -> Reason:
        return cls.UNSPECIFIED


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result for one recipient. `file` is its name in the maildir, for the log; "" unless stored or duplicate."""

    kind: OutcomeKind
    reason: Reason = Reason.NONE
    file: str = ""


class Recipient(msgspec.Struct, frozen=True, omit_defaults=True):
    """One accepted RCPT of a delivery.

    `address` is the forward-path as the client gave it, `mailbox` the maildir's path below the mail root, `folder` a
    Maildir++ folder ("" is INBOX, "Lists.python" is the directory `.Lists.python`), `original` the ORCPT address or "".
    """

    address: str
    mailbox: str
    folder: str = ""
    shard: str = DEFAULT_SHARD
    original: str = ""


class Delivery(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message on its way to one or more mailboxes of one shard.

    `key` is `content_key(sender, content)`; `deadline` is in seconds since the epoch, by ingest's clock; `received` is
    the trace line that ingest adds (RFC 5321 4.4), without a line end at its end; `content` is what followed DATA,
    dot-unstuffed, with CRLF line ends; `message_id` is the content's Message-ID, for the log, or "".
    """

    id: str
    key: bytes
    sender: str
    recipients: tuple[Recipient, ...]
    deadline: float
    received: str
    content: memoryview
    message_id: str = ""


class Bundle(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one AMQP message carries: deliveries of one shard. `published_at` is in seconds since the epoch."""

    deliveries: tuple[Delivery, ...]
    published_at: float = 0.0


class Acknowledgement(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcomes of one delivery, one for each of its recipients, in their order."""

    id: str
    outcomes: tuple[Outcome, ...]


class Acknowledgements(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one AMQP message from store to ingest carries.

    `unreadable` names a bundle (its AMQP message id) that the store could not decode: none of its deliveries is stored.
    """

    acknowledgements: tuple[Acknowledgement, ...] = ()
    unreadable: str = ""


class UnreadableError(ValueError):
    """The bytes are not what this contract calls a bundle or acknowledgements."""


_encoder = msgspec.msgpack.Encoder()
_bundle_decoder = msgspec.msgpack.Decoder(Bundle)
_acknowledgements_decoder = msgspec.msgpack.Decoder(Acknowledgements)


def encode(message: Bundle | Acknowledgements) -> bytes:
    """The bytes of one AMQP message: MessagePack maps with the field names above; defaults are left out."""
    return _encoder.encode(message)


def decode_bundle(data: bytes) -> Bundle:
    """A bundle; its contents are views into `data`, which they keep alive. Raises UnreadableError."""
    try:
        return _bundle_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UnreadableError(str(error)) from error


def decode_acknowledgements(data: bytes) -> Acknowledgements:
    """Acknowledgements. Raises UnreadableError."""
    try:
        return _acknowledgements_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UnreadableError(str(error)) from error


def content_key(sender: str, content: bytes | memoryview) -> bytes:
    """Identifies a retry: the same sender and the same bytes give the same key, whatever trace lines are added later.

    16 bytes; the store combines it with mailbox and folder (`mailbox_key`), so the content is hashed only once.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"roost.content")
    # The length sets the sender apart from the content: ("a", "bc") and ("ab", "c") must differ.
    name = sender.encode()
    digest.update(len(name).to_bytes(4, "big"))
    digest.update(name)
    digest.update(content)
    return digest.digest()


def mailbox_key(key: bytes, mailbox: str, folder: str) -> bytes:
    """The key of one copy: this content, from this sender, in this folder of this mailbox. 16 bytes."""
    digest = hashlib.blake2b(key, digest_size=16, person=b"roost.mailbox")
    digest.update(b"\0".join((mailbox.encode(), folder.encode())))
    return digest.digest()


def encoded_size_bound(delivery: Delivery) -> int:
    """No bundle of this one delivery is larger than this many bytes, so a publisher can keep within the broker's limit.

    It holds for what `size_bound` says of names.
    """
    return size_bound(len(delivery.content), len(delivery.recipients))


def size_bound(content_bytes: int, recipients: int) -> int:
    """No bundle of one such delivery is larger than this many bytes.

    Addresses are at most 320 octets (RFC 5321 4.5.3.1), host names 255, the Message-ID 252; mailbox and folder together
    MAX_MAILBOX_BYTES. The caller keeps to that.
    """
    return content_bytes + _DELIVERY_OVERHEAD_BYTES + _RECIPIENT_OVERHEAD_BYTES * recipients


class QueuePolicy(msgspec.Struct, frozen=True):
    """The arguments of the work queues. Both services declare them, so both need the same ones."""

    type: str
    ttl_s: float
    max_length: int
    max_length_bytes: int


def queue_name(shard: str) -> str:
    """The durable work queue of a shard; its routing key on the exchange is the shard itself."""
    return f"mail.store.{_QUEUE_VERSION}.{shard}"


def queue_arguments(policy: QueuePolicy) -> dict[str, str | int]:
    """RabbitMQ's arguments for a work queue: bounded in time, count and bytes; what does not fit is refused."""
    return {
        "x-queue-type": policy.type,
        "x-message-ttl": round(policy.ttl_s * 1000),
        "x-max-length": policy.max_length,
        "x-max-length-bytes": policy.max_length_bytes,
        "x-overflow": "reject-publish",
    }
