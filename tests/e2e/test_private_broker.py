"""`deploy/local/broker`: what it keeps, what it leaves and what it lets others do."""

from __future__ import annotations

import socket
import stat
from collections.abc import Callable
from pathlib import Path

import aio_pika

from deploy.local import sockets
from tests.support.broker import Broker
from tests.support.waiting import wait_until

PERSISTENT = aio_pika.Message(b"content", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


async def publish(broker: Broker) -> None:
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True)
        await channel.default_exchange.publish(PERSISTENT, routing_key="kept")


async def kept(broker: Broker) -> int | None:
    async with await aio_pika.connect(broker.url) as connection:
        queue = await (await connection.channel()).declare_queue("kept", durable=True, passive=True)
        return queue.declaration_result.message_count


def listening(first_port: int) -> list[int]:
    """Which of the broker's three ports are taken: AMQP, distribution, epmd."""
    return [port for port in range(first_port, first_port + 3) if sockets.can_listen("127.0.0.1", port)]


async def test_data_port_and_password_outlive_a_restart(new_broker: Callable[..., Broker]) -> None:
    """Stopped and started again, it is reached under the same URL and holds the same messages."""
    broker = new_broker()
    url = broker.url
    await publish(broker)
    broker.stop()
    broker.start()
    assert (broker.url, await kept(broker)) == (url, 1)


async def test_a_killed_broker_starts_again_at_once(new_broker: Callable[..., Broker]) -> None:
    """After SIGKILL neither its data folder, nor its ports, nor its epmd are in the way of the next start."""
    broker = new_broker()
    await publish(broker)
    broker.kill()
    wait_until(lambda: not listening(broker.port), what="node and epmd let go of their ports")
    broker.start()
    assert await kept(broker) == 1


def test_nothing_listens_after_a_stop(new_broker: Callable[..., Broker]) -> None:
    """A stopped broker leaves no listener behind, its epmd's included."""
    broker = new_broker()
    assert len(listening(broker.port)) == 3
    broker.stop()
    wait_until(lambda: not listening(broker.port), what="node and epmd let go of their ports")


def test_it_listens_on_loopback_only(broker: Broker) -> None:
    """AMQP, the distribution and epmd answer on loopback addresses and on no other."""
    ports = range(broker.port, broker.port + 3)
    assert {host for host, port in listeners() if port in ports} <= {"127.0.0.1", "::1"}


def listeners() -> list[tuple[str, int]]:
    """The host and port of every TCP listener in this network namespace."""
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            if state == "0A":
                host, port = local.split(":")
                words = bytes.fromhex(host)
                # The kernel prints addresses as 32-bit words in the machine's order.
                address = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                found.append((socket.inet_ntop(family, address), int(port, 16)))
    return found


def test_its_secrets_are_its_users_alone(broker: Broker) -> None:
    """Password, configuration and cookie cannot be read by other users."""
    secrets = ("password", "rabbitmq.conf", ".erlang.cookie")
    modes = {name: stat.S_IMODE((broker.home / name).stat().st_mode) & 0o077 for name in secrets}
    assert modes == dict.fromkeys(secrets, 0)


def test_it_watches_the_disk(broker: Broker) -> None:
    """The free space is known, and known to be too little only below the limit, whatever the folder is called."""
    assert "Free disk space: " in broker.rabbitmqctl("status")
