"""One LMTP session, server side (RFC 2033): bytes in, events out, replies to bytes.

Knows the protocol. Knows no socket, no clock, no log and no broker: its caller feeds what arrives, takes one event
after the other until NEED_DATA, PAUSED or CLOSED, gives the answers that events ask for, and sends what `data_to_send`
holds.
Nothing a client sends makes it raise; LocalError is a bug of the caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from services.ingest.lmtp import reply as replies
from services.ingest.lmtp.address import NULL_SENDER, Address
from services.ingest.lmtp.command import Command, Verb, parse_command, parse_lhlo, parse_mail, parse_rcpt
from services.ingest.lmtp.content import ContentDecoder
from services.ingest.lmtp.errors import LocalError
from services.ingest.lmtp.events import (
    CLOSED,
    NEED_DATA,
    PAUSED,
    Event,
    MessageReceived,
    MessageRefused,
    RecipientGiven,
    SenderGiven,
)
from services.ingest.lmtp.limits import Limits
from services.ingest.lmtp.lines import LineBuffer, LineFault
from services.ingest.lmtp.owed import OwedReplies
from services.ingest.lmtp.reply import Reply
from services.ingest.lmtp.states import COMMAND_STATES, IDLE_STATES, TRANSACTION_STATES, TRANSITIONS, State, Step

_SHUTTING_DOWN: Final = 421
_CONSTANT_REPLIES: Final = {
    Verb.RSET: replies.OK,
    Verb.NOOP: replies.OK,
    Verb.VRFY: replies.CANNOT_VERIFY,
    Verb.HELP: replies.HELP,
}


class Session:
    """The greeting is in `data_to_send` from the start."""

    client_name: str
    """What LHLO said: printable ASCII without spaces, "" before it."""

    error_count: int
    """Bad commands since the start, or since the last received message."""

    def __init__(self, *, hostname: str, limits: Limits) -> None:
        self.client_name = ""
        self.error_count = 0
        self._hostname = hostname
        self._limits = limits
        self._state = State.FRESH
        self._input = LineBuffer(limits.max_line_bytes)
        self._at_eof = False
        self._farewell: Reply | None = None
        self._pardons = 0
        self._output = [replies.greeting(hostname).encode()]
        self._sender = NULL_SENDER
        self._candidate = NULL_SENDER
        self._recipients: list[Address] = []
        self._decoder: ContentDecoder | None = None
        self._owed: OwedReplies | None = None

    def receive_data(self, data: bytes) -> None:
        """Take what the client sent; `next_event` is due. After CLOSED it is dropped.

        The caller stops reading while PAUSED: what is fed then waits in memory.
        """
        if not data or self._at_eof:
            raise LocalError("no data is b'', and none follows the end of the stream: that is receive_eof()")
        if self._state is not State.CLOSED:
            self._input.append(data)

    def receive_eof(self) -> None:
        """The client sends no more; `next_event` is due. What came whole before is still served, then CLOSED."""
        self._at_eof = True

    def next_event(self) -> Event:
        """The next thing that happened. PAUSED stays until what is owed is given, CLOSED forever."""
        while True:
            if self._state in COMMAND_STATES:
                event = self._read_command()
            elif self._decoder is not None:
                event = self._read_content(self._decoder)
            else:
                return CLOSED if self._state is State.CLOSED else PAUSED
            if event is not None:
                return event

    def answer(self, reply: Reply) -> None:
        """Reply to MAIL after SenderGiven, or to RCPT after RecipientGiven: 2xx accepts, 421 also ends the session.

        After CLOSED it is ignored, since whoever looks up a recipient need not know of an abort.
        """
        if self._state is State.CLOSED:
            return
        if self._state not in {State.SENDER_OWED, State.RECIPIENT_OWED}:
            raise LocalError("no answer is owed")
        _check_final(reply)
        if reply.code == _SHUTTING_DOWN:
            self._close(reply)
            return
        self._emit(reply)
        if not reply.is_success:
            self._pardon_what_follows()
        if self._state is State.SENDER_OWED:
            self._move(Step.SENDER_ACCEPTED if reply.is_success else Step.SENDER_REFUSED)
            return
        if reply.is_success:
            self._recipients.append(self._candidate)
        self._move(Step.RECIPIENT_ANSWERED)

    def settle(self, index: int, reply: Reply) -> None:
        """Reply to one recipient of the message that was received; replies leave in the order of the RCPTs.

        After CLOSED it is ignored: what is under way need not know of an abort.
        """
        if self._state is State.CLOSED:
            return
        if self._owed is None:
            raise LocalError("no message is owed replies")
        _check_final(reply)
        self._emit_all(self._owed.settle(index, reply))
        if self._owed.is_settled:
            self._move(Step.REPLIES_LEFT)

    def data_to_send(self) -> bytes:
        """The output so far, b"" if there is none; it is the caller's now."""
        if not self._output:
            return b""
        data = b"".join(self._output)
        self._output.clear()
        return data

    def drain(self, reply: Reply) -> None:
        """End the session with this 421: at once between transactions, else right after the one that is open."""
        _check_farewell(reply)
        if self._state in IDLE_STATES:
            self._close(reply)
        elif self._state is not State.CLOSED:
            self._farewell = reply

    def abort(self, reply: Reply) -> None:
        """End the session with this 421 now. A recipient that is owed a reply gets this one, or the one it has."""
        _check_farewell(reply)
        if self._state is State.CLOSED:
            return
        if self._owed is None:
            self._close(reply)
            return
        # Each keeps its own line: a client that counts them must not read one recipient's reply as another's.
        self._emit_all(self._owed.settle_all(reply))
        self._leave(Step.CLOSE)

    @property
    def in_transaction(self) -> bool:
        """From an accepted MAIL until the last owed reply left, or RSET or LHLO."""
        return self._state in TRANSACTION_STATES

    @property
    def buffered_bytes(self) -> int:
        """What this session keeps in memory of its input: not consumed yet, or content that is being collected."""
        collected = self._decoder.held_bytes if self._decoder else 0
        return len(self._input) + collected

    def _read_command(self) -> Event | None:
        line = self._input.line()
        if line is None:
            return self._starve()
        command = replies.LINE_TOO_LONG if isinstance(line, LineFault) else parse_command(line)
        if isinstance(command, Command):
            return self._obey(command)
        self._object(command)
        return None

    def _read_content(self, decoder: ContentDecoder) -> Event:
        chunk = self._input.take()
        rest = decoder.feed(chunk) if chunk else None
        if rest is None:
            return self._starve()
        self._input.append(rest)
        self.error_count = 0
        sender, recipients = self._sender, tuple(self._recipients)
        if decoder.is_oversize:
            self._emit_all([replies.CONTENT_TOO_LARGE] * len(recipients))
            self._move(Step.CONTENT_REFUSED)
            return MessageRefused(sender, recipients, replies.CONTENT_TOO_LARGE, decoder.size_bytes)
        self._decoder = None
        self._owed = OwedReplies(len(recipients))
        self._move(Step.CONTENT_ENDED)
        return MessageReceived(sender, recipients, decoder.take())

    def _starve(self) -> Event:
        if not self._at_eof:
            return NEED_DATA
        self._leave(Step.CLOSE)
        return CLOSED

    def _obey(self, command: Command) -> Event | None:
        verb = command.verb
        follows = TRANSITIONS[self._state][verb]
        if isinstance(follows, Reply):
            self._object_to_order(follows)
            return None
        match verb:
            case Verb.MAIL:
                return self._mail(command.argument)
            case Verb.RCPT:
                return self._rcpt(command.argument)
            case Verb.DATA:
                self._data()
            case Verb.LHLO:
                self._lhlo(command.argument)
            case Verb.QUIT:
                self._emit(replies.BYE)
                self._leave(verb)
            case Verb.RSET | Verb.NOOP | Verb.VRFY | Verb.HELP:
                self._emit(_CONSTANT_REPLIES[verb])
                self._move(verb)
        return None

    def _lhlo(self, argument: str) -> None:
        name = parse_lhlo(argument)
        if isinstance(name, Reply):
            self._object(name)
            return
        self.client_name = name
        self._emit(replies.capabilities(self._hostname, self._limits.max_content_bytes))
        self._move(Verb.LHLO)

    def _mail(self, argument: str) -> SenderGiven | None:
        mail = parse_mail(argument)
        self._pardons = 0
        if isinstance(mail, Reply):
            self._pardon_what_follows()
            self._object(mail)
            return None
        if mail.declared_size is not None and mail.declared_size > self._limits.max_content_bytes:
            self._pardon_what_follows()
            self._emit(replies.CONTENT_TOO_LARGE)
            return None
        self._sender = mail.sender
        self._move(Verb.MAIL)
        return SenderGiven(mail.sender, mail.declared_size, mail.body_8bit)

    def _rcpt(self, argument: str) -> RecipientGiven | None:
        recipient = parse_rcpt(argument)
        if isinstance(recipient, Reply):
            self._pardon_what_follows()
            self._object(recipient)
            return None
        if len(self._recipients) >= self._limits.max_recipients:
            self._emit(replies.TOO_MANY_RECIPIENTS)
            return None
        self._candidate = recipient
        self._move(Verb.RCPT)
        return RecipientGiven(recipient)

    def _data(self) -> None:
        # RFC 2033 4.2: without an accepted recipient there must be no 354, or the client would owe a message that
        # nobody gets a reply for.
        if not self._recipients:
            self._object_to_order(replies.NO_RECIPIENT)
            return
        self._decoder = ContentDecoder(self._limits.max_content_bytes)
        self._emit(replies.START_CONTENT)
        self._move(Verb.DATA)

    def _object(self, reply: Reply) -> None:
        self.error_count += 1
        if self.error_count > self._limits.max_errors:
            self._close(replies.TOO_MANY_ERRORS)
        else:
            self._emit(reply)

    def _object_to_order(self, reply: Reply) -> None:
        if self._pardons:
            self._pardons -= 1
            self._emit(reply)
        else:
            self._object(reply)

    def _pardon_what_follows(self) -> None:
        # A client that pipelines (RFC 2920) has sent its RCPTs and DATA before it can know that they are in vain:
        # these are no errors of its, but there is no transaction that has more of them.
        self._pardons = self._limits.max_recipients + 1

    def _emit(self, reply: Reply) -> None:
        self._output.append(reply.encode())

    def _emit_all(self, several: Iterable[Reply]) -> None:
        self._output.extend([reply.encode() for reply in several])

    def _move(self, trigger: Verb | Step) -> None:
        follows = TRANSITIONS[self._state].get(trigger)
        if not isinstance(follows, State):
            raise LocalError(f"{trigger} in {self._state}")
        self._state = follows
        if follows is State.READY:
            self._forget_transaction()
            if self._farewell is not None:
                self._close(self._farewell)

    def _close(self, reply: Reply) -> None:
        self._emit(reply)
        self._leave(Step.CLOSE)

    def _leave(self, trigger: Verb | Step) -> None:
        self._move(trigger)
        self._forget_transaction()
        self._input.take()

    def _forget_transaction(self) -> None:
        self._sender = self._candidate = NULL_SENDER
        self._recipients = []
        self._decoder = None
        self._owed = None


def _check_final(reply: Reply) -> None:
    if not reply.enhanced:
        raise LocalError(f"{reply} cannot be final: no enhanced status code")


def _check_farewell(reply: Reply) -> None:
    if reply.code != _SHUTTING_DOWN or not reply.enhanced:
        raise LocalError(f"{reply} does not end a session: that is 421 with an enhanced status code")
