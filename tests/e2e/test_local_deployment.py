"""`deploy/local/up` as a user meets it: it starts, says how to send, heals, stops without a trace, refuses clearly."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import sockets
from tests.support.local import LocalDeployment
from tests.support.waiting import wait_until

ALICE = "example.org/alice"
EX_CONFIG = 78


@pytest.fixture(scope="module")
def roost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDeployment]:
    """A running copy whose state folder has a space in its name; leave it running and ready."""
    copy = LocalDeployment(tmp_path_factory.mktemp("local deployment") / "state of it")
    try:
        copy.start()
        yield copy
    finally:
        copy.end()


@pytest.fixture
def refused(tmp_path: Path) -> Iterator[LocalDeployment]:
    """A copy that is not started yet."""
    copy = LocalDeployment(tmp_path / "state")
    yield copy
    copy.end()


def message(name: str) -> bytes:
    """A message with what a line-oriented protocol trips over: dots, no line end at its end, bytes above 127."""
    return f"Subject: {name}\n\n.\n..\n. {name}\n".encode() + bytes(range(128, 256)) + b"\n.last line"


def assert_flows(copy: LocalDeployment, name: str) -> None:
    """A message goes in by `send` and is in the mailbox, byte for byte below the trace headers."""
    sent = copy.send("alice@example.org", message(name))
    assert (sent.returncode, sent.stderr) == (0, b""), sent.stdout
    # Maildirs hold lines that end with LF, the last one, too.
    assert [stored for stored in copy.mail(ALICE) if stored.endswith(b"\n" + message(name) + b"\n")]


def test_the_printed_command_sends_a_first_message(roost: LocalDeployment) -> None:
    """The command that `up` prints can be pasted into a shell, and the message is in the mail root."""
    sent = subprocess.run(
        ["/bin/sh", "-c", roost.send_command()], capture_output=True, timeout=60, text=True, check=False
    )
    assert (sent.returncode, sent.stderr) == (0, "")
    assert re.fullmatch(r"alice@example\.org: 250 2\.0\.0 .* Saved\n", sent.stdout)
    assert any(stored.endswith(b"Subject: Hello\n\nThe first one.\n") for stored in roost.mail(ALICE))


def test_a_message_arrives_byte_for_byte(roost: LocalDeployment) -> None:
    """Dots, 8-bit bytes and a missing last line end come through."""
    assert_flows(roost, "whole")


def test_send_tells_every_recipients_reply(roost: LocalDeployment) -> None:
    """One refused recipient does not keep the others from their mail, and shows in the exit status."""
    sent = subprocess.run(
        [str(Path("deploy/local/send")), "nobody@example.org", "bob@example.org", "--from", "carol@example.com"],
        input=b"Subject: two\r\n\r\nCRLF\r\n",
        env=roost.environment(),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=60,
        check=False,
    )
    lines = sent.stdout.decode().splitlines()
    assert sent.returncode == 1
    assert [line.split(" ")[:2] for line in lines] == [["nobody@example.org:", "550"], ["bob@example.org:", "250"]]
    assert [stored.startswith(b"Return-Path: <carol@example.com>\n") for stored in roost.mail("example.org/bob")] == [
        True
    ]


@pytest.mark.parametrize("program", ["ingest", "store", "broker"])
def test_what_dies_is_started_again(roost: LocalDeployment, program: str) -> None:
    """After kill -9 of a program another one runs in its place, and mail flows as before."""
    killed = roost.pid_of(program)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: roost.pid_of(program) != killed, what=f"{program} runs again", timeout=30)
    wait_until(roost.is_ready, what="both services are ready again", timeout=90)
    assert_flows(roost, f"after the end of {program}")


def test_a_program_that_keeps_dying_is_never_given_up(roost: LocalDeployment) -> None:
    """However often it is killed right after its start, it comes back."""
    killed = {roost.pid_of("store")}
    for _ in range(5):
        os.kill(roost.pid_of("store"), signal.SIGKILL)
        wait_until(lambda: roost.pid_of("store") not in killed, what="the store runs again", timeout=30)
        killed.add(roost.pid_of("store"))
    wait_until(roost.is_ready, what="both services are ready again", timeout=90)
    assert_flows(roost, "after the end of many stores")


def test_a_second_copy_runs_beside_the_first_and_stops_without_a_trace(roost: LocalDeployment, tmp_path: Path) -> None:
    """Other settings make another copy; SIGTERM ends it with status 0, and no process or listener of it stays."""
    second = LocalDeployment(tmp_path / "second")
    try:
        second.start()
        assert_flows(second, "second")
        ports = second.ports()
        assert all(sockets.can_listen("127.0.0.1", port) for port in ports)
        assert second.stop() == 0
        wait_until(lambda: not second.processes(), what="none of its processes is left")
        assert [port for port in ports if sockets.can_listen("127.0.0.1", port)] == []
    finally:
        second.end()
    assert roost.is_ready()
    assert not [stored for stored in roost.mail(ALICE) if b"Subject: second\n" in stored]


def test_a_killed_up_takes_everything_with_it(tmp_path: Path) -> None:
    """After kill -9 of `up` itself its programs end by themselves, in good order, and the state can be used again."""
    copy = LocalDeployment(tmp_path / "killed")
    try:
        copy.start()
        copy.stop(signal.SIGKILL)
        wait_until(lambda: not copy.processes(), what="none of its processes is left", timeout=60)
        copy.start()
        assert_flows(copy, "again")
        assert copy.stop(signal.SIGINT) == 0
    finally:
        copy.end()


def test_one_state_serves_one_copy(roost: LocalDeployment, tmp_path: Path) -> None:
    """A second copy on the same state says so in one line and leaves the first alone."""
    second = LocalDeployment(tmp_path / "unused", ROOST_STATE=str(roost.state))
    assert second.run_to_its_end() == 1
    assert second.printed() == f"up: ROOST_STATE={roost.state} is in use by another copy\n"
    assert roost.is_ready()


@pytest.mark.parametrize("setting", ["ROOST_LMTP", "ROOST_INGEST_HTTP", "ROOST_STORE_HTTP"])
def test_a_taken_port_is_named(refused: LocalDeployment, setting: str) -> None:
    """A port that somebody listens on ends the start with one line that names the setting and the address."""
    with socket.create_server(sockets.address(refused.settings[setting])):
        assert refused.run_to_its_end() == 1
    expected = f"up: {setting}: cannot listen on {refused.settings[setting]}: Address already in use\n"
    assert refused.printed() == expected
    assert refused.processes() == []


def test_one_port_for_two_purposes_is_named(refused: LocalDeployment) -> None:
    """Two settings with one address end the start before anything runs."""
    refused.settings["ROOST_STORE_HTTP"] = refused.settings["ROOST_LMTP"]
    assert refused.run_to_its_end() == 1
    assert refused.printed().startswith("up: ROOST_STORE_HTTP: cannot listen on ")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("ROOST_LMTP", "nowhere"),
        ("ROOST_STORE_HTTP", "127.0.0.1:port"),
        ("ROOST_MAX_CONTENT_BYTES", "much"),
        ("ROOST_SHARD", "first"),
        ("ROOST_READY_WITHIN_S", "soon"),
        ("ROOST_RECIPIENTS", "/nowhere/recipients"),
    ],
)
def test_a_bad_setting_is_named(refused: LocalDeployment, setting: str, value: str) -> None:
    """A setting that cannot work ends the start with status 78 and one line that names it; nothing was started."""
    refused.settings[setting] = value
    assert refused.run_to_its_end() == EX_CONFIG
    assert re.fullmatch(rf"\S+: .*{setting}={re.escape(value)}.*\n", refused.printed())
    assert refused.processes() == []


def test_what_never_gets_ready_is_stopped_again(refused: LocalDeployment) -> None:
    """With a broker that does not answer `up` says what is missing, stops what it had started, and fails."""
    nobody = f"127.0.0.1:{sockets.free_ports(1)}"
    refused.settings |= {"ROOST_AMQP_URL": f"amqp://user:secret@{nobody}/", "ROOST_READY_WITHIN_S": "3"}
    assert refused.run_to_its_end() == 1
    assert "\nup: not ready; everything is stopped again" in refused.printed()
    assert "secret" not in refused.printed()
    wait_until(lambda: not refused.processes(), what="none of its processes is left")
