# ruff: noqa: INP001 - scripts stand here, not a package
"""Finds, checks and awaits sockets for the shell scripts beside it; `sockets.py` alone says how.

Standard library only: it runs before any package is installed.
"""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Final

# Below the ports that Linux hands out for outgoing connections (from 32768), so that none takes a port between its
# choice and its use.
_CANDIDATES: Final = range(20000, 32000)

_AMQP_HEADER: Final = b"AMQP\x00\x00\x09\x01"
_ATTEMPT_S: Final = 2.0
_PAUSE_S: Final = 0.1

_USAGE: Final = """\
sockets.py free COUNT              print the first of COUNT consecutive free ports on loopback
sockets.py check NAME ADDRESSES    fail, naming NAME, if one of host:port,... is taken or malformed
sockets.py amqp HOST:PORT SECONDS  succeed once an AMQP broker answers there
sockets.py http URL SECONDS        succeed once URL answers 200"""


def address(text: str) -> tuple[str, int]:
    """The host and port of `host:port` or `[host]:port`. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{text!r} is not host:port")
    return host.strip("[]"), int(port)


def can_listen(host: str, port: int) -> str:
    """Empty if a listener can be opened there, else the reason."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as listener:
            # As servers do: connections that are still closing do not make a port taken.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports that nobody listens on. Raises OSError if there are none."""
    for _ in range(1000):
        first = random.choice(_CANDIDATES)  # noqa: S311 - no secret
        if not any(can_listen("127.0.0.1", port) for port in range(first, first + count)):
            return first
    raise OSError("no free ports on 127.0.0.1")


def check(name: str, addresses: str) -> str:
    """Empty if every TCP address of a comma-separated list is free, else a line that names the setting."""
    for text in filter(None, map(str.strip, addresses.split(","))):
        if text.startswith("unix:"):
            continue
        try:
            reason = can_listen(*address(text))
        except ValueError as error:
            return f"{name}: {error}"
        if reason:
            return f"{name}: cannot listen on {text}: {reason}"
    return ""


def speaks_amqp(text: str) -> bool:
    """Whether a broker answers AMQP's protocol header with a method frame (Connection.Start)."""
    with contextlib.suppress(OSError), socket.create_connection(address(text), timeout=_ATTEMPT_S) as connection:
        connection.sendall(_AMQP_HEADER)
        return connection.recv(1) == b"\x01"
    return False


def answers_http(url: str) -> bool:
    """Whether a GET is answered by 200, whatever proxy the environment names."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError, urllib.error.URLError), direct.open(url, timeout=_ATTEMPT_S) as response:
        return bool(response.status == 200)  # noqa: PLR2004 - HTTP's OK
    return False


def await_answer(answers: Callable[[str], bool], where: str, seconds: float) -> str:
    """Empty once it answers, else a line that says it did not in time."""
    deadline = time.monotonic() + seconds
    while not answers(where):
        if time.monotonic() > deadline:
            return f"{where} did not answer in {seconds:g} s"
        time.sleep(_PAUSE_S)
    return ""


def main(arguments: list[str]) -> str | int:
    """The exit status, or the line that explains a failure."""
    match arguments:
        case ["free", count]:
            sys.stdout.write(f"{free_ports(int(count))}\n")
        case ["check", name, addresses]:
            return check(name, addresses) or 0
        case ["amqp", where, seconds]:
            return await_answer(speaks_amqp, where, float(seconds)) or 0
        case ["http", url, seconds]:
            return await_answer(answers_http, url, float(seconds)) or 0
        case _:
            return _USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
