"""LMTP clients for tests: one reply per accepted recipient, pipelining, and raw bytes where a test wants to be rude.

`LmtpClient` blocks, `AsyncLmtpClient` awaits; both read with a deadline. A reply that does not come is a TimeoutError,
a connection that the server closed a ConnectionError.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_CHUNK = 65536


@dataclass(frozen=True)
class Reply:
    """One reply of the server, with the text of each of its lines."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def ok(self) -> bool:
        return 200 <= self.code < 300

    @property
    def enhanced(self) -> str:
        """The enhanced status code (RFC 3463) of the first line; "" if it has none."""
        first = self.lines[0].split(" ", 1)[0]
        return first if first.count(".") == 2 and first.replace(".", "").isdigit() else ""


@dataclass
class Transaction:
    """The replies of one mail transaction.

    `recipients` holds each RCPT's reply in order, `data` what DATA was answered, and `outcomes` the replies after the
    final dot: one for each accepted recipient, in their order.
    """

    mail: Reply
    recipients: list[tuple[str, Reply]]
    data: Reply
    outcomes: list[tuple[str, Reply]] = field(default_factory=list)

    def final(self) -> list[tuple[str, Reply]]:
        """What each recipient got in the end, in the order of RCPT: the refusal, or the outcome."""
        outcomes = iter(self.outcomes)
        return [(rcpt, next(outcomes)[1] if reply.ok and self.outcomes else reply) for rcpt, reply in self.recipients]


class ReplyReader:
    """Bytes in, replies out (RFC 5321 4.2.1); does no I/O. ValueError if the bytes are no reply."""

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[str] = []

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Reply | None:
        """The next complete reply, None if more bytes are needed."""
        while b"\r\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            code, separator, text = line[:3].decode(), line[3:4], line[4:].decode()
            if not code.isdigit() or separator not in (b" ", b"-", b""):
                raise ValueError(f"not a reply: {line!r}")
            self._lines.append(text)
            if separator != b"-":
                reply, self._lines = Reply(int(code), tuple(self._lines)), []
                return reply
        return None


def stuff(content: bytes) -> bytes:
    """Content as it goes over the wire after DATA: dots doubled at line starts, the final dot added.

    Only CRLF starts a line; content that does not end in CRLF gets one.
    """
    stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
    end = b"" if not stuffed or stuffed.endswith(b"\r\n") else b"\r\n"
    return stuffed + end + b".\r\n"


def envelope(sender: str, recipients: Iterable[str], parameters: str = "") -> list[str]:
    """MAIL and RCPT commands. `parameters` follow the reverse-path: " SIZE=1000 BODY=8BITMIME"."""
    return [f"MAIL FROM:<{sender}>{parameters}", *(f"RCPT TO:<{recipient}>" for recipient in recipients)]


class LmtpClient:
    """A blocking session with the server at "127.0.0.1:2424" or "unix:/path"; use it as a context manager."""

    def __init__(self, address: str, *, timeout: float = 30) -> None:
        self._timeout = timeout
        self._reader = ReplyReader()
        self.socket = _connect(address, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Raw bytes; raises TimeoutError if the server does not read them."""
        self.socket.settimeout(self._timeout)
        self.socket.sendall(data)

    def reply(self, timeout: float | None = None) -> Reply:
        """The next reply, within `timeout` seconds."""
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        while (reply := self._reader.next()) is None:
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self.socket.recv(_CHUNK)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self._reader.feed(data)
        return reply

    def closed(self, timeout: float | None = None) -> bool:
        """Waits for the server to close the connection; False if it sends something instead."""
        self.socket.settimeout(self._timeout if timeout is None else timeout)
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def command(self, line: str, timeout: float | None = None) -> Reply:
        self.send(line.encode() + b"\r\n")
        return self.reply(timeout)

    def open(self) -> Reply:
        """Reads the greeting and says LHLO; LHLO's reply."""
        greeting = self.reply()
        assert greeting.code == 220, greeting
        lhlo = self.command("LHLO client.example.net")
        assert lhlo.code == 250, lhlo
        return lhlo

    def deliver(
        self, sender: str, recipients: Sequence[str], content: bytes, *, parameters: str = "", pipelining: bool = True
    ) -> Transaction:
        """One transaction after `open`, replies of every recipient included."""
        lines = [*envelope(sender, recipients, parameters), "DATA"]
        if pipelining:
            self.send("".join(line + "\r\n" for line in lines).encode())
            mail, *rcpts, data = [self.reply() for _ in lines]
        else:
            mail, *rcpts, data = [self.command(line) for line in lines]
        transaction = Transaction(mail, list(zip(recipients, rcpts, strict=True)), data)
        if data.code == 354:
            self.send(stuff(content))
            transaction.outcomes = [(rcpt, self.reply()) for rcpt, reply in transaction.recipients if reply.ok]
        return transaction

    def quit(self) -> Reply:
        return self.command("QUIT")


class AsyncLmtpClient:
    """The same session for asyncio, for many at once: `async with AsyncLmtpClient(address) as client`."""

    def __init__(self, address: str, *, timeout: float = 30) -> None:
        self._address = address
        self._timeout = timeout
        self._replies = ReplyReader()

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(self._timeout):
            if self._address.startswith("unix:"):
                streams = await asyncio.open_unix_connection(self._address.removeprefix("unix:"))
            else:
                host, _, port = self._address.rpartition(":")
                streams = await asyncio.open_connection(host, int(port))
        self._reader, self._writer = streams
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(self._timeout):
            self._writer.write(data)
            await self._writer.drain()

    async def reply(self, timeout: float | None = None) -> Reply:
        """The next reply, within `timeout` seconds."""
        async with asyncio.timeout(self._timeout if timeout is None else timeout):
            while (reply := self._replies.next()) is None:
                data = await self._reader.read(_CHUNK)
                if not data:
                    raise ConnectionResetError("the server closed the connection")
                self._replies.feed(data)
        return reply

    async def command(self, line: str, timeout: float | None = None) -> Reply:
        await self.send(line.encode() + b"\r\n")
        return await self.reply(timeout)

    async def open(self) -> Reply:
        """Reads the greeting and says LHLO; LHLO's reply."""
        greeting = await self.reply()
        assert greeting.code == 220, greeting
        lhlo = await self.command("LHLO client.example.net")
        assert lhlo.code == 250, lhlo
        return lhlo

    async def deliver(
        self, sender: str, recipients: Sequence[str], content: bytes, *, parameters: str = ""
    ) -> Transaction:
        """One pipelined transaction after `open`, replies of every recipient included."""
        lines = [*envelope(sender, recipients, parameters), "DATA"]
        await self.send("".join(line + "\r\n" for line in lines).encode())
        mail, *rcpts, data = [await self.reply() for _ in lines]
        transaction = Transaction(mail, list(zip(recipients, rcpts, strict=True)), data)
        if data.code == 354:
            await self.send(stuff(content))
            transaction.outcomes = [(rcpt, await self.reply()) for rcpt, reply in transaction.recipients if reply.ok]
        return transaction

    async def quit(self) -> Reply:
        return await self.command("QUIT")


def _connect(address: str, timeout: float) -> socket.socket:
    if not address.startswith("unix:"):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=timeout)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    connection.connect(address.removeprefix("unix:"))
    return connection
