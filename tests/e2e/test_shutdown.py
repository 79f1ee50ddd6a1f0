"""SIGTERM: what has started is finished, nothing new begins, the exit status is 0; a second signal ends at once."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.support.broker import Broker
from tests.support.freezing import frozen
from tests.support.letters import SENDER, hand_in, letter
from tests.support.lmtp_client import LmtpClient, envelope, stuff
from tests.support.stack import Stack
from tests.support.waiting import wait_until

NewStack = Callable[..., Stack]

# 128 + SIGTERM, as a shell reports a process that a signal ended.
AT_ONCE = 143


@contextmanager
def client_in_data(stack: Stack, users: list[str]) -> Iterator[LmtpClient]:
    """A client that has been told to send its content and has sent a part of it."""
    with LmtpClient(stack.lmtp) as client:
        client.open()
        for line in envelope(SENDER, users):
            assert client.command(line).code == 250
        assert client.command("DATA").code == 354
        client.send(b"Subject: a part\r\n")
        yield client


def is_refused(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_ingest_finishes_the_transaction_that_is_in_data(new_stack: NewStack) -> None:
    """The client in the middle of DATA gets every recipient's reply, then 421; an idle one gets 421 at once."""
    stack = new_stack()
    users = stack.new_users(2)
    with LmtpClient(stack.lmtp) as idle, client_in_data(stack, users) as busy:
        idle.open()
        stack.ingest.terminate()
        farewell = idle.reply()
        assert (farewell.code, farewell.enhanced) == (421, "4.3.2")
        assert idle.closed()
        wait_until(lambda: is_refused(stack.lmtp), what="no new session is taken")
        assert not Path(stack.lmtp_socket.removeprefix("unix:")).exists()
        assert not stack.ingest.readiness()["draining"]

        busy.send(b"\r\nthe rest\r\n.\r\n")
        assert [busy.reply().code for _ in users] == [250, 250]
        assert busy.reply().code == 421
        assert busy.closed()
    assert stack.ingest.wait() == 0
    for user in users:
        [file] = stack.files(user)
        assert file.read_bytes().endswith(b"\nSubject: a part\n\nthe rest\n")
    assert stack.ingest.log.complaints() == []


def test_ingest_finishes_what_is_pipelined_behind_the_envelope(new_stack: NewStack) -> None:
    """A transaction counts as started with MAIL: its RCPT, DATA and content are still taken while ingest drains."""
    stack = new_stack()
    user = stack.new_user()
    with LmtpClient(stack.lmtp) as idle, LmtpClient(stack.lmtp) as busy:
        idle.open()
        busy.open()
        mail, rcpt = envelope(SENDER, [user])
        assert busy.command(mail).code == 250
        stack.ingest.terminate()
        assert idle.reply().code == 421
        assert busy.command(rcpt).code == 250
        assert busy.command("DATA").code == 354
        busy.send(stuff(letter(1)))
        assert [busy.reply().code for _ in range(2)] == [250, 421]
    assert stack.ingest.wait() == 0
    assert len(stack.files(user)) == 1


def test_a_second_signal_ends_ingest_at_once(new_stack: NewStack) -> None:
    """While ingest waits for a client in DATA, another SIGTERM ends it without waiting."""
    stack = new_stack()
    with LmtpClient(stack.lmtp) as idle, client_in_data(stack, stack.new_users(1)) as busy:
        idle.open()
        stack.ingest.terminate()
        assert idle.reply().code == 421
        stack.ingest.terminate()
        assert stack.ingest.wait(5) == AT_ONCE
        assert busy.closed()


def test_clients_that_do_not_finish_are_cut_off(new_stack: NewStack) -> None:
    """A client that stays in the middle of DATA is told 421 when the time for draining is over, and ingest exits 0."""
    stack = new_stack(ROOST_DRAIN_TIMEOUT_S=0.5)
    with client_in_data(stack, stack.new_users(1)) as busy:
        stack.ingest.terminate()
        assert busy.reply().code == 421
        assert busy.closed()
    assert stack.ingest.wait() == 0


def test_an_ingest_that_restarts_under_load_loses_nothing(new_stack: NewStack) -> None:
    """Stopped while mail comes in, and started again: exit 0, and Postfix delivers every message once."""
    stack = new_stack()
    postfix = stack.postfix()
    users = stack.new_users(3)
    with ThreadPoolExecutor(1) as thread:
        handing_in = thread.submit(hand_in, postfix, [(tuple(users), letter(number, 20_000)) for number in range(200)])
        stack.ingest.wait_metric("roost_ingest_transactions_total", 10)
        assert stack.ingest.stop() == 0
        stack.ingest.start()
        sent = handing_in.result(timeout=60)
    postfix.flush()
    postfix.wait_removed({message.queue_id for message in sent})
    assert "deferred" in {attempt.status for attempt in postfix.log.all_attempts()}
    for user in users:
        assert sorted(subject(file) for file in stack.files(user)) == list(range(len(sent)))


def test_a_store_that_stops_under_load_loses_nothing(new_stack: NewStack) -> None:
    """Stopped in the middle of hundreds of deliveries and started again: exit 0, all 250, each mail there once."""
    stack = new_stack()
    users = stack.new_users(8)
    with ThreadPoolExecutor(len(users)) as threads:
        clients = [threads.submit(deliver_many, stack, user, 60) for user in users]
        stack.store.wait_metric("roost_store_recipients_total", 50)
        assert stack.store.stop() == 0
        stack.store.start()
        replies = [client.result(timeout=60) for client in clients]
    assert replies == [[250] * 60] * len(users)
    for user in users:
        assert sorted(subject(file) for file in stack.files(user)) == sorted(range(60))
    assert stack.leftovers() == []
    assert stack.store.log.complaints() == []


def deliver_many(stack: Stack, user: str, count: int) -> list[int]:
    """The reply to each of `count` messages, one after the other on one session."""
    with LmtpClient(stack.lmtp, timeout=60) as client:
        client.open()
        replies = [client.deliver(SENDER, [user], letter(number, 2_000)).final() for number in range(count)]
    return [reply.code for [(_, reply)] in replies]


def subject(file: Path) -> int:
    return int(file.read_bytes().partition(b"\nSubject: ")[2].partition(b"\n")[0])


def test_a_second_signal_ends_the_store_at_once(new_broker: Callable[..., Broker], new_stack: NewStack) -> None:
    """While the store waits for a broker that does not answer, another SIGTERM ends it without waiting."""
    broker = new_broker()
    stack = new_stack(amqp_url=broker.url)
    with frozen(broker.pid):
        stack.store.terminate()
        wait_until(lambda: not stack.store.readiness()["draining"], what="the store drains")
        stack.store.terminate()
        assert stack.store.wait(5) == AT_ONCE
