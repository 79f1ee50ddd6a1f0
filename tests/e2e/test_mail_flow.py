"""Mail goes through: Postfix -> ingest -> RabbitMQ -> store -> Maildir -> Dovecot."""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.conftest import Site
from tests.support.letters import SENDER, Sent, hand_in, letter
from tests.support.postfix import Postfix
from tests.support.stack import DOMAIN, lock, unlock
from tests.support.trace import traced

MESSAGES = 300
SESSIONS = 4


def hand_in_many(postfix: Postfix, users: list[str]) -> list[Sent]:
    chance = random.Random(2033)
    letters = [
        (tuple(chance.sample(users, chance.randint(1, 5))), letter(number, chance.choice([100, 4_000, 40_000])))
        for number in range(MESSAGES)
    ]
    with ThreadPoolExecutor(SESSIONS) as threads:
        parts = threads.map(lambda first: hand_in(postfix, letters[first::SESSIONS]), range(SESSIONS))
        return [sent for part in parts for sent in part]


def submitted(site: Site, user: str) -> list[tuple[str, bytes]]:
    """What a user's INBOX shows, as it was handed to Postfix."""
    return [traced(message.content).submitted() for message in site.dovecot.messages(user)]


def test_many_messages_reach_every_recipient_once_and_unchanged(site: Site) -> None:
    """Of 300 messages, sent over several sessions at a time, each mailbox shows its own, once, byte for byte."""
    users = site.stack.new_users(12)
    sent = hand_in_many(site.postfix, users)
    site.postfix.wait_removed({message.queue_id for message in sent}, timeout=60)
    for message in sent:
        statuses = [(attempt.recipient, attempt.status) for attempt in site.postfix.log.attempts(message.queue_id)]
        assert sorted(statuses) == sorted((recipient, "sent") for recipient in message.recipients)
    for user in users:
        expected = [(message.queue_id, message.content) for message in sent if user in message.recipients]
        assert sorted(submitted(site, user)) == sorted(expected)
    assert site.stack.leftovers() == []


def test_every_copy_names_its_own_recipient_and_the_sender(site: Site) -> None:
    """Delivered-To is the mailbox's own address, whoever else got the message, and Return-Path is the sender."""
    users = site.stack.new_users(3)
    queue_id = site.postfix.submit(SENDER, users, letter(1))
    site.postfix.wait_removed({queue_id})
    for user in users:
        [message] = site.dovecot.messages(user)
        assert (traced(message.content).sender, traced(message.content).recipient) == (SENDER, user)


def test_an_unknown_recipient_bounces_and_the_others_get_their_mail(site: Site) -> None:
    """Of three recipients the one without a mailbox is bounced with 550 5.1.1, and the other two are delivered to."""
    first, last = site.stack.new_users(2)
    unknown = f"nobody@{DOMAIN}"
    queue_id = site.postfix.submit(SENDER, [first, unknown, last], letter(1))
    site.postfix.wait_removed({queue_id})
    attempts = {attempt.recipient: attempt for attempt in site.postfix.log.attempts(queue_id)}
    statuses = {recipient: attempt.status for recipient, attempt in attempts.items()}
    assert statuses == {first: "sent", unknown: "bounced", last: "sent"}
    assert attempts[unknown].dsn == "5.1.1"
    assert "550 5.1.1 " in attempts[unknown].reply
    assert submitted(site, first) == submitted(site, last) == [(queue_id, letter(1))]
    assert not site.stack.maildir(unknown).exists()


def test_a_mailbox_that_cannot_be_written_delays_only_its_own_mail(site: Site) -> None:
    """Postfix defers exactly the recipient whose mailbox is locked, delivers after the mend, and nobody gets two."""
    locked, *others = users = site.stack.new_users(3)
    before = site.postfix.submit(SENDER, [locked], letter(1))
    site.postfix.wait_for(before, locked, "sent")
    lock(site.stack.maildir(locked))
    queue_id = site.postfix.submit(SENDER, users, letter(2))
    deferred = site.postfix.wait_for(queue_id, locked, "deferred")
    assert deferred.dsn == "4.3.0"
    assert f"said: 451 4.3.0 <{locked}> " in deferred.reply
    for user in others:
        site.postfix.wait_for(queue_id, user, "sent")
    assert queued_recipients(site.postfix, queue_id) == [locked]

    unlock(site.stack.maildir(locked))
    site.postfix.flush()
    site.postfix.wait_removed({queue_id})
    assert submitted(site, locked) == [(before, letter(1)), (queue_id, letter(2))]
    for user in others:
        assert submitted(site, user) == [(queue_id, letter(2))]
        assert len(site.postfix.log.attempts(queue_id, user)) == 1
    assert site.stack.leftovers() == []


def queued_recipients(postfix: Postfix, queue_id: str) -> list[str]:
    [entry] = [entry for entry in postfix.queue() if entry["queue_id"] == queue_id]
    recipients = entry["recipients"]
    assert isinstance(recipients, list)
    return [recipient["address"] for recipient in recipients]


def test_delivery_over_a_unix_socket(site: Site) -> None:
    """Postfix delivers through ingest's Unix socket as it does over TCP."""
    user = site.stack.new_user()
    postfix = site.stack.postfix(transport=f"lmtp:{site.stack.lmtp_socket}")
    queue_id = postfix.submit(SENDER, [user], letter(1, 10_000))
    sent = postfix.wait_for(queue_id, user, "sent")
    assert site.stack.lmtp_socket.removeprefix("unix:") in sent.relay
    assert submitted(site, user) == [(queue_id, letter(1, 10_000))]


def test_the_delivery_id_in_the_log_of_postfix_leads_to_the_file(site: Site) -> None:
    """The id in the 250 stands in the log lines of both services, in the file's name and in the trace header."""
    users = site.stack.new_users(2)
    queue_id = site.postfix.submit(SENDER, users, letter(77, 5_000))
    site.postfix.wait_removed({queue_id})
    replies = [attempt.reply for attempt in site.postfix.log.attempts(queue_id)]
    matches = [re.fullmatch(r"250 2\.0\.0 <([^>]*)> (\w{18}) Saved", reply) for reply in replies]
    assert [match and match[1] for match in matches] == users
    [delivery] = {match[2] for match in matches if match}

    [transaction] = site.stack.ingest.log.lines("transaction", delivery=delivery)
    assert transaction["recipients"] == users
    assert transaction["replies"] == ["250 2.0.0", "250 2.0.0"]
    for user in users:
        [stored] = site.stack.store.log.lines("stored", delivery=delivery, recipient=user)
        for name in ("sender", "message_id", "bytes"):
            assert stored[name] == transaction[name]
        assert stored["message_id"] == "<77@client.example.net>"
        [file] = site.stack.files(user)
        assert file.name == stored["file"]
        assert f"P{delivery}" in file.name
        [message] = site.dovecot.messages(user)
        assert traced(message.content).delivery == delivery
