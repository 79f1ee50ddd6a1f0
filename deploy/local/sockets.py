# ruff: noqa: INP001 - scripts stand here, not a package
"""Finds, checks and awaits sockets for the shell scripts beside it; `sockets.py` alone says how.

Standard library only: it runs before any package is installed.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

# Below the ports that Linux hands out for outgoing connections (from 32768), so that none takes a port between its
# choice and its use.
_CANDIDATES: Final = range(20000, 32000)

_AMQP_HEADER: Final = b"AMQP\x00\x00\x09\x01"
_ATTEMPT_S: Final = 2.0
_PAUSE_S: Final = 0.1
_EXCERPT_BYTES: Final = 2000

_USAGE: Final = """\
sockets.py free COUNT                 print the first of COUNT consecutive free ports on loopback
sockets.py free COUNT ADDRESSES       as above, but no port of ADDRESSES, although nobody may listen there yet
sockets.py check NAME=ADDRESSES...    fail, with a line that names NAME, if one of its addresses (host:port or
                                      unix:/path, separated by commas) is taken, malformed or named twice
sockets.py amqp HOST:PORT SECONDS     succeed once an AMQP broker answers there
sockets.py url HOST:PORT              print http://HOST:PORT, with a host that reaches a server which listens there
sockets.py http URL SECONDS [PID]     succeed once URL answers 200; else, or if PID ends, print what it answered last"""


def address(text: str) -> tuple[str, int]:
    """The host and port of `host:port`, `[host]:port` or `:port` (all addresses). Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{text!r} is not host:port")
    return host.strip("[]") or "0.0.0.0", int(port)


def split(addresses: str) -> list[str]:
    """The addresses of a list that is separated by commas."""
    return [text for part in addresses.split(",") if (text := part.strip())]


def listen(host: str, port: int) -> socket.socket:
    """A listener, for the caller to close. Raises OSError."""
    family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, proto)
    try:
        # As servers do: connections that are still closing do not make a port taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def can_listen(host: str, port: int) -> str:
    """Empty if a listener can be opened there, else the reason."""
    try:
        listen(host, port).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def free_ports(count: int, reserved: Iterable[int] = ()) -> int:
    """The first of `count` consecutive ports that nobody listens on. Raises OSError if there are none."""
    for _ in range(1000):
        first = random.choice(_CANDIDATES)  # noqa: S311 - no secret
        ports = range(first, first + count)
        if not set(ports) & set(reserved) and not any(can_listen("127.0.0.1", port) for port in ports):
            return first
    raise OSError("no free ports on 127.0.0.1")


def tcp_ports(addresses: str) -> list[int]:
    """The TCP ports among addresses that are separated by commas."""
    return [address(text)[1] for text in split(addresses) if not text.startswith("unix:")]


def check(settings: Iterable[str]) -> str:
    """Empty if every address of every setting is free, else a line that names the setting."""
    with contextlib.ExitStack() as opened:
        for name, _, addresses in (setting.partition("=") for setting in settings):
            for text in split(addresses):
                try:
                    _try(text, opened)
                except ValueError as error:
                    return f"{name}: {error}"
                except OSError as error:
                    return f"{name}: cannot listen on {text}: {error.strerror or error}"
    return ""


def _try(text: str, opened: contextlib.ExitStack) -> None:
    """Raises OSError if an address is taken. Keeps TCP's open, so that one that is named twice is taken, too."""
    if not text.startswith("unix:"):
        opened.enter_context(listen(*address(text)))
        return
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(_ATTEMPT_S)
        peer.connect(text.removeprefix("unix:"))
        raise OSError("somebody answers there")


def speaks_amqp(text: str) -> bool:
    """Whether a broker answers AMQP's protocol header with a method frame (Connection.Start)."""
    with contextlib.suppress(OSError), socket.create_connection(address(text), timeout=_ATTEMPT_S) as connection:
        connection.sendall(_AMQP_HEADER)
        return connection.recv(1) == b"\x01"
    return False


def answers_http(page: str) -> bool:
    """Whether a GET is answered by 200, whatever proxy the environment names."""
    return _get(page)[0] == 200  # noqa: PLR2004 - HTTP's OK


def _get(page: str) -> tuple[int, str]:
    """Status and content of an answer, or 0 and why there is none."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(page, timeout=_ATTEMPT_S) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_EXCERPT_BYTES).decode(errors="replace")
    except urllib.error.URLError as error:
        return 0, str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)


def await_answer(answers: Callable[[str], bool], where: str, seconds: float, pid: int = 0) -> bool:
    """Whether it answers within the time; false as soon as process `pid` has ended, if one is given."""
    deadline = time.monotonic() + seconds
    while not answers(where):
        if time.monotonic() > deadline or (pid and not Path(f"/proc/{pid}").exists()):
            return False
        time.sleep(_PAUSE_S)
    return True


def url(text: str) -> str:
    """Where to reach a server that listens at `text`: one that listens everywhere answers on loopback."""
    host, port = address(text)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def main(arguments: list[str]) -> str | int:
    """The exit status, or the line that explains a failure."""
    match arguments:
        case ["free", count, *addresses]:
            sys.stdout.write(f"{free_ports(int(count), tcp_ports(','.join(addresses)))}\n")
        case ["check", *settings]:
            return check(settings) or 0
        case ["amqp", where, seconds]:
            if not await_answer(speaks_amqp, where, float(seconds)):
                return f"{where} did not answer in {seconds} s"
        case ["url", where]:
            sys.stdout.write(f"{url(where)}\n")
        case ["http", page, seconds, *pid]:
            if not await_answer(answers_http, page, float(seconds), *map(int, pid)):
                status, content = _get(page)
                return f"{page}: {status or 'no answer'}: {content}"
        case _:
            return _USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
