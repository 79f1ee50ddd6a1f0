"""A store that is away for a while, seen by Postfix: nothing within the deadline, a retry beyond it."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.letters import SENDER, hand_in, letter
from tests.support.stack import Stack
from tests.support.trace import traced

NewStack = Callable[..., Stack]


def test_an_absence_within_the_deadline_is_not_seen(new_stack: NewStack) -> None:
    """Mail that arrives while the store is stopped waits, and is delivered at the first attempt once it is back."""
    stack = new_stack()
    postfix = stack.postfix(initial_destination_concurrency="10")
    users = stack.new_users(4)
    assert stack.store.stop() == 0
    sent = hand_in(postfix, [(tuple(users), letter(number)) for number in range(10)])
    stack.ingest.wait_metric("roost_ingest_in_flight_deliveries", 10)
    assert [file for user in users for file in stack.files(user)] == []

    stack.store.start()
    postfix.wait_removed({message.queue_id for message in sent})
    assert {attempt.status for attempt in postfix.log.all_attempts()} == {"sent"}
    assert len(postfix.log.all_attempts()) == 10 * len(users)
    assert [len(stack.files(user)) for user in users] == [10] * len(users)


def test_an_absence_beyond_the_deadline_defers(new_stack: NewStack) -> None:
    """Postfix gets 451 in time for every recipient, delivers once the store is back, and nobody gets two."""
    stack = new_stack(ROOST_STORE_BUDGET_S=1, ROOST_QUEUE_TTL_S=2, ROOST_ACK_DEADLINE_S=3)
    # Only `flush` tries again: how often Postfix would try before the store is back must not decide this test.
    postfix = stack.postfix(minimal_backoff_time="1000s", maximal_backoff_time="1000s", queue_run_delay="1000s")
    dovecot = stack.dovecot()
    users = stack.new_users(2)
    stack.store.stop()
    queue_id = postfix.submit(SENDER, users, letter(1))
    for user in users:
        deferred = postfix.wait_for(queue_id, user, "deferred")
        assert deferred.dsn == "4.4.1"
        assert f"said: 451 4.4.1 <{user}> " in deferred.reply

    stack.store.start()
    postfix.flush()
    postfix.wait_removed({queue_id})
    for user in users:
        assert [attempt.status for attempt in postfix.log.attempts(queue_id, user)] == ["deferred", "sent"]
        [message] = dovecot.messages(user)
        assert traced(message.content).submitted() == (queue_id, letter(1))


def test_a_store_that_was_killed_comes_back(new_stack: NewStack) -> None:
    """Killed while mail comes in, and started again, the store has every message that Postfix counts as sent."""
    stack = new_stack()
    postfix = stack.postfix()
    users = stack.new_users(3)
    sent = hand_in(postfix, [(tuple(users), letter(number, 20_000)) for number in range(30)])
    stack.store.wait_metric("roost_store_recipients_total", 1)
    stack.store.kill()
    stack.store.start()
    postfix.wait_removed({message.queue_id for message in sent})
    assert {attempt.status for attempt in postfix.log.all_attempts()} == {"sent"}
    for user in users:
        contents = {traced(crlf(file.read_bytes())).submitted() for file in stack.files(user)}
        assert contents == {(message.queue_id, message.content) for message in sent}


def crlf(stored: bytes) -> bytes:
    return stored.replace(b"\n", b"\r\n")
