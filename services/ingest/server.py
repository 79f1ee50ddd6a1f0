"""LMTP on asyncio transports: listeners, time-outs, the limit on sessions, draining.

Feeds bytes to sessions and sends what they say; the protocol is in `lmtp`, what happens to a message in `intake`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

import structlog

from services.ingest import replies
from services.ingest.directory import Found
from services.ingest.intake import Client, Intake
from services.ingest.lmtp import (
    CLOSED,
    NEED_DATA,
    PAUSED,
    Limits,
    MessageReceived,
    MessageRefused,
    RecipientGiven,
    Reply,
    SenderGiven,
    Session,
)
from services.ingest.metrics import Metrics
from services.ingest.settings import IngestSettings
from services.process.health import bind
from services.process.settings import Endpoint

log = structlog.get_logger()

_SWEEP_S: Final = 1.0
_BACKLOG: Final = 1024
# Beyond the deadline within which the publisher settles everything.
_SETTLE_MARGIN_S: Final = 30.0
# Postfix connects as its own user; who may is ruled by the folder that the socket is in.
_SOCKET_MODE: Final = 0o666


class Connection(asyncio.Protocol):
    """One client: its transport and its session."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._session = Session(hostname=server.hostname, limits=server.limits)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._client = Client("")
        self._found: list[Found] = []
        self._paused = False
        self._last_heard = self._loop.time()
        self._unread_since: float | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, unless there are too many already."""
        # A stream server's; uvloop's is one by its methods, not by its class.
        stream = cast("asyncio.Transport", transport)
        self._transport = stream
        self._client = Client(_peer(stream))
        refusal = self._server.admit(self)
        if refusal:
            stream.write(refusal.encode())
            stream.close()
            return
        self._advance()

    def data_received(self, data: bytes) -> None:
        """Go on with the session. While replies are owed the client's further commands wait, most of them unread."""
        self._last_heard = self._loop.time()
        self._session.receive_data(data)
        if self._paused:
            self._stop_reading()
            return
        self._advance()

    def eof_received(self) -> bool:
        """The client sends no more. Replies that it is owed are still sent to it."""
        self._session.receive_eof()
        if not self._paused:
            self._advance()
        return self._paused

    def pause_writing(self) -> None:
        """The client does not read."""
        self._unread_since = self._loop.time()
        self._stop_reading()

    def resume_writing(self) -> None:
        """The client has read."""
        self._unread_since = None
        self._advance()

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget the session; what was published may still be stored, and its replies go nowhere."""
        if self._paused and self._transport is not None:
            self._server.metrics.transactions_lost.inc()
        self._transport = None
        self._server.forget(self)

    # The session

    def _advance(self, settled: Sequence[tuple[int, Reply]] = ()) -> None:
        """Act on what is settled and on what the client has sent, as far as it goes, and send what there is to say."""
        try:
            for index, reply in settled:
                self._session.settle(index, reply)
            signal = self._handle_events()
        except Exception:
            # Our own bug: this client is told to come back, the others are not disturbed.
            log.exception("session failed", client=self._client.peer)
            self._paused = False
            self._send(replies.INTERNAL_ERROR.encode())
            self._close()
            return
        self._paused = signal is PAUSED
        self._send(self._session.data_to_send())
        if signal is CLOSED:
            self._close()
        elif signal is NEED_DATA and self._unread_since is None and self._transport is not None:
            self._transport.resume_reading()

    def _handle_events(self) -> object:
        session, intake = self._session, self._server.intake
        while True:
            match session.next_event():
                case MessageReceived() as message:
                    found, self._found = self._found, []
                    intake.take(self._client, message, found, self._settle)
                case RecipientGiven(address):
                    reply, mailbox = intake.answer_recipient(address)
                    session.answer(reply)
                    if mailbox:
                        self._found.append(mailbox)
                case SenderGiven():
                    self._client.name = session.client_name
                    self._found = []
                    session.answer(intake.answer_sender())
                case MessageRefused() as message:
                    self._found = []
                    intake.refused(self._client, message)
                case signal:
                    return signal

    def _settle(self, settled: Sequence[tuple[int, Reply]]) -> None:
        """Some recipients' replies are known: they leave at once, as far as the order allows."""
        if self._transport is None:
            return
        if self._paused:
            self._advance(settled)
            return
        # A message that was refused for want of room, while the session's events are being handled: that goes on.
        for index, reply in settled:
            self._session.settle(index, reply)

    # Sending and ending

    def _send(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _stop_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def drain(self) -> None:
        """End the session once no transaction is open."""
        self._session.drain(replies.DRAINING)
        if not self._paused:
            self._advance()

    def abort(self) -> None:
        """End the session now; replies that are owed say so."""
        self._session.abort(replies.DRAINING)
        self._advance()

    def check(self, now: float, idle_s: float, reply_s: float, settle_s: float) -> None:
        """End the session if the client has been silent, or has not read its replies, for too long.

        Replies that do not come although their deadline is long over are a bug of ours; the client does not hang on it.
        """
        if self._unread_since is not None and now - self._unread_since > reply_s:
            log.warning("client does not read its replies", client=self._client.peer)
            if self._transport is not None:
                self._transport.abort()
        elif self._paused and now - self._last_heard > settle_s:
            log.error("replies overdue", client=self._client.peer)
            self.abort()
        elif not self._paused and now - self._last_heard > idle_s:
            self._session.abort(replies.IDLE)
            self._advance()


class Server:
    """Every session of this process."""

    def __init__(self, settings: IngestSettings, intake: Intake, metrics: Metrics) -> None:
        self.hostname = settings.hostname
        self.limits = Limits(max_content_bytes=settings.max_content_bytes, max_recipients=settings.max_recipients)
        self.intake = intake
        self.metrics = metrics
        self._settings = settings
        self._listeners: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False
        metrics.sessions_open.set_function(lambda: len(self._connections))

    async def listen(self) -> None:
        """Serve at every endpoint of the settings. Raises OSError, with the endpoint in its text."""
        loop = asyncio.get_running_loop()
        for endpoint in self._settings.lmtp_endpoints:
            listener = _bind_path(endpoint) if endpoint.path else bind(endpoint)
            self._listeners.append(
                await loop.create_server(lambda: Connection(self), sock=listener, backlog=_BACKLOG)
                if not endpoint.path
                else await loop.create_unix_server(lambda: Connection(self), sock=listener, backlog=_BACKLOG)
            )
            log.info("listening", lmtp=str(endpoint))

    async def run(self) -> None:
        """Keep the sessions' time-outs, until cancelled."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        settle_s = settings.ack_deadline_s + _SETTLE_MARGIN_S
        while True:
            await asyncio.sleep(_SWEEP_S)
            for connection in list(self._connections):
                connection.check(loop.time(), settings.idle_timeout_s, settings.reply_timeout_s, settle_s)

    async def drain(self) -> None:
        """Take no more sessions, end those between transactions, and let the others finish theirs in bounded time."""
        self.draining = True
        self._stop_listening()
        for connection in list(self._connections):
            connection.drain()
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._empty.wait()
        except TimeoutError:
            log.warning("sessions cut off", count=len(self._connections))
            for connection in list(self._connections):
                connection.abort()

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        for endpoint in self._settings.lmtp_endpoints:
            if endpoint.path:
                Path(endpoint.path).unlink(missing_ok=True)

    def admit(self, connection: Connection) -> Reply | None:
        """Take note of a new session, or say why it cannot be."""
        if self.draining:
            return replies.DRAINING
        if len(self._connections) >= self._settings.max_sessions:
            self.metrics.sessions.labels("refused").inc()
            return replies.TOO_MANY_SESSIONS
        self.metrics.sessions.labels("accepted").inc()
        self._connections.add(connection)
        self._empty.clear()
        return None

    def forget(self, connection: Connection) -> None:
        """A session has ended."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()


def _peer(transport: asyncio.Transport) -> str:
    name = transport.get_extra_info("peername")
    return f"[{name[0]}]" if isinstance(name, tuple) else "local"


def _bind_path(endpoint: Endpoint) -> socket.socket:
    """A listening Unix socket, in place of one that a dead process has left behind. Raises OSError."""
    path = endpoint.path
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_abandoned(path):
            Path(path).unlink()
        listener.bind(path)
        Path(path).chmod(_SOCKET_MODE)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {endpoint}: {error.strerror or error}") from error
    return listener


def _is_abandoned(path: str) -> bool:
    """Whether there is a socket at which nobody listens."""
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return False
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    return False
