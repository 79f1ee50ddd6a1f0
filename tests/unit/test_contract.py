"""What the two services agree on, as bytes: a change that goes red here breaks the other service's older version."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contract import (
    Acknowledgement,
    Acknowledgements,
    Bundle,
    Delivery,
    Outcome,
    OutcomeKind,
    QueuePolicy,
    Reason,
    Recipient,
    UnreadableError,
    content_key,
    decode_acknowledgements,
    decode_bundle,
    encode,
    encoded_size_bound,
    mailbox_key,
    queue_arguments,
    queue_name,
)

BUNDLE = Bundle(
    (
        Delivery(
            id="01jd5zq8k3m7n2p4r6",
            key=bytes(range(16)),
            sender="alice@example.org",
            recipients=(
                Recipient("bob@example.net", "example.net/bob"),
                Recipient("Carol@example.net", "example.net/carol", "Lists.python", "3", "carol@example.com"),
            ),
            deadline=1700000050.0,
            received="Received: from mx ([192.0.2.1])",
            content=memoryview(b"Subject: hi\r\n\r\n\xff.\r\n"),
            message_id="<1@example.org>",
        ),
    ),
    1700000000.5,
)

GOLDEN_BUNDLE = bytes.fromhex(
    # {deliveries: [{id: ..., key: ..., sender: ...,
    "82 aa 64656c69766572696573 91 88 a2 6964 b2 30316a64357a71386b336d376e3270347236"
    "a3 6b6579 c410 000102030405060708090a0b0c0d0e0f a6 73656e646572 b1 616c696365406578616d706c652e6f7267"
    # recipients: [{address, mailbox}, {address, mailbox, folder, shard, original}],
    "aa 726563697069656e7473 92"
    "82 a7 61646472657373 af 626f62406578616d706c652e6e6574 a7 6d61696c626f78 af 6578616d706c652e6e65742f626f62"
    "85 a7 61646472657373 b1 4361726f6c406578616d706c652e6e6574"
    "a7 6d61696c626f78 b1 6578616d706c652e6e65742f6361726f6c a6 666f6c646572 ac 4c697374732e707974686f6e"
    "a5 7368617264 a1 33 a8 6f726967696e616c b1 6361726f6c406578616d706c652e636f6d"
    # deadline, received, content, message_id}], published_at}
    "a8 646561646c696e65 cb 41d954fc4c800000"
    "a8 7265636569766564 bf 52656365697665643a2066726f6d206d7820285b3139322e302e322e315d29"
    "a7 636f6e74656e74 c413 5375626a6563743a2068690d0a0d0aff2e0d0a"
    "aa 6d6573736167655f6964 af 3c31406578616d706c652e6f72673e"
    "ac 7075626c69736865645f6174 cb 41d954fc40200000"
)

ACKNOWLEDGEMENTS = Acknowledgements(
    (
        Acknowledgement(
            "01jd5zq8k3m7n2p4r6",
            (
                Outcome(OutcomeKind.STORED, file="1700000000.M1P1.host,S=20,W=22"),
                Outcome(OutcomeKind.DUPLICATE),
                Outcome(OutcomeKind.DEFERRED, Reason.DISK_FULL),
                Outcome(OutcomeKind.REJECTED, Reason.OVER_QUOTA),
            ),
        ),
    )
)

GOLDEN_ACKNOWLEDGEMENTS = bytes.fromhex(
    # {acknowledgements: [{id, outcomes: [{kind, file}, {kind}, {kind, reason}, {kind, reason}]}]}
    "81 b0 61636b6e6f776c656467656d656e7473 91 82 a2 6964 b2 30316a64357a71386b336d376e3270347236"
    "a8 6f7574636f6d6573 94"
    "82 a4 6b696e64 a6 73746f726564 a4 66696c65 be 313730303030303030302e4d3150312e686f73742c533d32302c573d3232"
    "81 a4 6b696e64 a9 6475706c6963617465"
    "82 a4 6b696e64 a8 6465666572726564 a6 726561736f6e a9 6469736b5f66756c6c"
    "82 a4 6b696e64 a8 72656a6563746564 a6 726561736f6e aa 6f7665725f71756f7461"
)

GOLDEN_UNREADABLE = bytes.fromhex("81 aa 756e7265616461626c65 a2 3566")


def text(limit: int) -> st.SearchStrategy[str]:
    return st.text(max_size=limit)


def ascii_text(limit: int, least: int = 0) -> st.SearchStrategy[str]:
    return st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=least, max_size=limit)


recipients = st.builds(Recipient, text(30), text(30), text(10), text(4), text(30))
deliveries = st.builds(
    Delivery,
    id=text(20),
    key=st.binary(max_size=20),
    sender=text(30),
    recipients=st.lists(recipients, max_size=3).map(tuple),
    deadline=st.floats(allow_nan=False),
    received=text(50),
    content=st.binary(max_size=200).map(memoryview),
    message_id=text(30),
)
bundles = st.builds(Bundle, st.lists(deliveries, max_size=3).map(tuple), st.floats(allow_nan=False))
outcomes = st.builds(Outcome, st.sampled_from(OutcomeKind), st.sampled_from(Reason), text(30))
acknowledgements = st.builds(
    Acknowledgements,
    st.lists(st.builds(Acknowledgement, text(20), st.lists(outcomes, max_size=3).map(tuple)), max_size=3).map(tuple),
    text(20),
)


def test_a_bundle_has_these_bytes() -> None:
    """A bundle is a MessagePack map by field names, without the fields that have their default."""
    assert encode(BUNDLE) == GOLDEN_BUNDLE
    assert decode_bundle(GOLDEN_BUNDLE) == BUNDLE


def test_acknowledgements_have_these_bytes() -> None:
    """Acknowledgements are a MessagePack map by field names, kinds and reasons by their names."""
    assert encode(ACKNOWLEDGEMENTS) == GOLDEN_ACKNOWLEDGEMENTS
    assert decode_acknowledgements(GOLDEN_ACKNOWLEDGEMENTS) == ACKNOWLEDGEMENTS
    assert encode(Acknowledgements(unreadable="5f")) == GOLDEN_UNREADABLE
    assert decode_acknowledgements(GOLDEN_UNREADABLE) == Acknowledgements(unreadable="5f")


@given(bundles)
def test_a_bundle_survives_the_way(bundle: Bundle) -> None:
    """decode(encode(x)) == x for every bundle."""
    assert decode_bundle(encode(bundle)) == bundle


@given(acknowledgements)
def test_acknowledgements_survive_the_way(message: Acknowledgements) -> None:
    """decode(encode(x)) == x for all acknowledgements."""
    assert decode_acknowledgements(encode(message)) == message


def test_contents_are_views_into_the_message() -> None:
    """A decoded content is not copied out of the AMQP message, which may be 50 MB."""
    assert decode_bundle(GOLDEN_BUNDLE).deliveries[0].content.obj is GOLDEN_BUNDLE


def with_unknown_fields(value: object) -> object:
    """Every map in `value` gets fields that this version does not know."""
    match value:
        case dict():
            known = {key: with_unknown_fields(item) for key, item in value.items()}
            return {"a_new_field": {"deep": [1, None, b"\0"]}, **known, "another": 1.5}
        case list():
            return [with_unknown_fields(item) for item in value]
        case _:
            return value


def test_unknown_fields_are_ignored_at_every_level() -> None:
    """What a newer version adds to any part of a message does not disturb an older one."""
    newer = msgspec.msgpack.encode(with_unknown_fields(msgspec.msgpack.decode(GOLDEN_BUNDLE)))
    assert newer.count(b"a_new_field") == 4
    assert decode_bundle(newer) == BUNDLE
    newer = msgspec.msgpack.encode(with_unknown_fields(msgspec.msgpack.decode(GOLDEN_ACKNOWLEDGEMENTS)))
    assert newer.count(b"a_new_field") == 6
    assert decode_acknowledgements(newer) == ACKNOWLEDGEMENTS


@pytest.mark.parametrize(
    ("path", "field", "default"),
    [
        ((), "published_at", 0.0),
        (("deliveries", 0), "message_id", ""),
        (("deliveries", 0, "recipients", 1), "folder", ""),
        (("deliveries", 0, "recipients", 1), "shard", "0"),
        (("deliveries", 0, "recipients", 1), "original", ""),
    ],
)
def test_fields_that_an_older_version_lacks_have_defaults(path: tuple, field: str, default: object) -> None:
    """A bundle of a version before a field existed is read, with the field's default."""
    older = msgspec.msgpack.decode(GOLDEN_BUNDLE)
    part = older
    for step in path:
        part = part[step]
    del part[field]
    decoded = decode_bundle(msgspec.msgpack.encode(older))
    for step in path:
        decoded = decoded[step] if isinstance(step, int) else getattr(decoded, step)
    assert getattr(decoded, field) == default


@pytest.mark.parametrize("field", ["id", "key", "sender", "recipients", "deadline", "received", "content"])
def test_fields_that_were_always_there_are_required(field: str) -> None:
    """A delivery without one of its first fields is unreadable; nothing is guessed."""
    lacking = msgspec.msgpack.decode(GOLDEN_BUNDLE)
    del lacking["deliveries"][0][field]
    with pytest.raises(UnreadableError, match=field):
        decode_bundle(msgspec.msgpack.encode(lacking))


def decode_outcome(**fields: object) -> Outcome:
    message = {"acknowledgements": [{"id": "1", "outcomes": [fields]}]}
    return decode_acknowledgements(msgspec.msgpack.encode(message)).acknowledgements[0].outcomes[0]


def test_an_unknown_outcome_kind_means_deferred() -> None:
    """An outcome of a newer store is neither success nor final: the client is told to come back."""
    assert decode_outcome(kind="quarantined") == Outcome(OutcomeKind.DEFERRED)
    assert decode_outcome(kind="quarantined", reason="virus", file="x").kind is OutcomeKind.DEFERRED


def test_an_unknown_reason_means_unspecified() -> None:
    """A reason of a newer store does not make its outcome unreadable, nor change its kind."""
    assert decode_outcome(kind="rejected", reason="moved") == Outcome(OutcomeKind.REJECTED, Reason.UNSPECIFIED)
    assert decode_outcome(kind="stored").reason is Reason.NONE


def prefixes_of(golden: bytes) -> st.SearchStrategy[bytes]:
    """Broken messages near to whole ones reach deeper than random bytes."""
    cuts = st.integers(0, len(golden) - 1).map(lambda end: golden[:end])
    changed = st.tuples(st.integers(0, len(golden) - 1), st.integers(0, 255)).map(
        lambda change: golden[: change[0]] + bytes([change[1]]) + golden[change[0] + 1 :]
    )
    return st.one_of(st.binary(max_size=200), cuts, changed)


@given(st.one_of(prefixes_of(GOLDEN_BUNDLE), prefixes_of(GOLDEN_ACKNOWLEDGEMENTS)))
def test_arbitrary_bytes_raise_unreadable_only(data: bytes) -> None:
    """Whatever comes from the queue is a message or an UnreadableError, never another exception."""
    for decode in (decode_bundle, decode_acknowledgements):
        try:
            decode(data)
        except UnreadableError:
            continue


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x80",
        GOLDEN_BUNDLE + b"\0",
        b"\x82\xa1x" + b"\x91" * 100_000 + b"\xc0",
        b"\x81\xaadeliveries\xdd\xff\xff\xff\xff",
        b"\x81\xa1\xff\xc0",
    ],
    ids=["empty", "reserved byte", "empty map", "more behind it", "deep", "four thousand million items", "no utf-8"],
)
def test_what_is_no_bundle_raises_unreadable(data: bytes) -> None:
    """Broken, nested or oversized framing is one kind of error."""
    with pytest.raises(UnreadableError):
        decode_bundle(data)


def test_the_content_key_has_this_value() -> None:
    """The keys in a ledger on disk stay valid: the function never changes."""
    assert content_key("alice@example.org", b"Subject: hi\r\n\r\n").hex() == "fc625535926042e6ff5a623b803b1781"
    assert content_key("", b"").hex() == "83a24b3578ff0224c3dc8070f30881a2"


def test_the_mailbox_key_has_this_value() -> None:
    """The keys in a ledger on disk stay valid: the function never changes."""
    assert mailbox_key(bytes(range(16)), "example.net/bob", "").hex() == "590bd95b8de762fe14eac48076851465"


@given(st.text(max_size=5), st.binary(max_size=5), st.text(max_size=5), st.binary(max_size=5))
def test_content_keys_are_equal_for_equal_deliveries_only(
    sender: str, content: bytes, other_sender: str, other: bytes
) -> None:
    """Two deliveries share a key exactly when sender and content are the same."""
    same = (sender, content) == (other_sender, other)
    assert (content_key(sender, memoryview(content)) == content_key(other_sender, other)) is same


@pytest.mark.parametrize(("sender", "content"), [("ab", b"c"), ("a", b"bc"), ("", b"abc"), ("abc", b"")])
def test_the_end_of_the_sender_counts(sender: str, content: bytes) -> None:
    """An octet that moves from the sender to the content makes another key."""
    others = [("ab", b"c"), ("a", b"bc"), ("", b"abc"), ("abc", b"")]
    others.remove((sender, content))
    assert content_key(sender, content) not in {content_key(*other) for other in others}


no_nul = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=4)


@given(st.tuples(st.binary(min_size=16, max_size=16), no_nul, no_nul), st.tuples(st.just(bytes(16)), no_nul, no_nul))
def test_mailbox_keys_are_equal_for_equal_places_only(one: tuple, other: tuple) -> None:
    """Two copies share a key exactly when content key, mailbox and folder are the same; names hold no NUL."""
    assert (mailbox_key(*one) == mailbox_key(*other)) is (one == other)


def test_a_folder_is_no_part_of_the_mailbox_name() -> None:
    """The end of the mailbox counts: neither ("ab", "c") and ("a", "bc") nor a slash between make the same key."""
    key = bytes(16)
    places = [("ab", "c"), ("a", "bc"), ("abc", ""), ("a/b", "c"), ("a", "b/c")]
    assert len({mailbox_key(key, *place) for place in places}) == len(places)


@st.composite
def recipients_at_the_limits(draw: st.DrawFn) -> Recipient:
    """RFC 5321's longest addresses, and the longest paths that a directory may give."""
    mailbox = draw(ascii_text(320))
    folder = draw(ascii_text(320 - len(mailbox)))
    return Recipient(draw(ascii_text(320)), mailbox, folder, "1023", draw(ascii_text(320)))


@given(
    st.builds(
        Delivery,
        id=ascii_text(18, 18),
        key=st.binary(min_size=16, max_size=16),
        sender=ascii_text(320),
        recipients=st.lists(recipients_at_the_limits(), max_size=3).map(tuple),
        deadline=st.floats(allow_nan=False),
        received=ascii_text(800),
        content=st.binary(max_size=300).map(memoryview),
        message_id=ascii_text(252),
    )
)
def test_the_size_bound_holds(delivery: Delivery) -> None:
    """No bundle of one delivery with addresses of legal length is larger than the bound says."""
    assert len(encode(Bundle((delivery,), 1.0))) <= encoded_size_bound(delivery)


def test_the_size_bound_holds_at_the_limits_of_everything() -> None:
    """The longest of every name at once, and a large content, still fit the bound."""
    recipient = Recipient("a" * 320, "m" * 320, "", "1023", "o" * 320)
    delivery = Delivery(
        id="i" * 18,
        key=bytes(16),
        sender="s" * 320,
        recipients=(recipient,),
        deadline=1.5,
        received="r" * 800,
        content=memoryview(bytes(70_000)),
        message_id="<" + "m" * 250 + ">",
    )
    assert len(encode(Bundle((delivery,), 1.0))) <= encoded_size_bound(delivery)


def test_the_arguments_of_a_queue() -> None:
    """A change of these needs a new queue version: RabbitMQ refuses it for an existing queue."""
    assert queue_arguments(QueuePolicy("quorum", 45.0, 20_000, 1 << 30)) == {
        "x-queue-type": "quorum",
        "x-message-ttl": 45_000,
        "x-max-length": 20_000,
        "x-max-length-bytes": 1_073_741_824,
        "x-overflow": "reject-publish",
    }


def test_the_name_of_a_queue() -> None:
    """A shard's queue has its version and the shard in its name."""
    assert queue_name("7") == "mail.store.v1.7"
