"""A caller of the engine that answers by a fixed rule, so that the same input must always give the same outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from services.ingest.lmtp import (
    CLOSED,
    NEED_DATA,
    PAUSED,
    RECIPIENT_OK,
    SENDER_OK,
    Address,
    Event,
    Limits,
    MessageReceived,
    RecipientGiven,
    Reply,
    SenderGiven,
    Session,
    Signal,
)

NO_SUCH_USER = Reply(550, "5.1.1", "No such user here")
BANNED = Reply(550, "5.7.1", "Refused")
SHUTTING_DOWN = Reply(421, "4.3.2", "Shutting down")

LIMITS = Limits(max_content_bytes=1000, max_recipients=100, max_line_bytes=512, max_errors=100)


def reply_to_sender(sender: Address) -> Reply:
    return BANNED if sender.user == "banned" else SENDER_OK


def reply_to_recipient(recipient: Address) -> Reply:
    return NO_SUCH_USER if recipient.user == "jones" else RECIPIENT_OK


def reply_for_message(recipient: Address) -> Reply:
    if recipient.user == "pat":
        return Reply(452, "4.2.2", f"<{recipient}> is temporarily over quota")
    return Reply(250, "2.0.0", f"<{recipient}> Saved")


@dataclass
class Driver:
    """Drives a session; `events` and `output` hold all that came of it so far."""

    limits: Limits = LIMITS
    settle_order: Callable[[range], Iterable[int]] = reversed
    events: list[Event] = field(default_factory=list)
    output: bytes = b""

    def __post_init__(self) -> None:
        self.session = Session(hostname="foo.edu", limits=self.limits)
        self.run()

    def feed(self, data: bytes) -> Signal:
        if data:
            self.session.receive_data(data)
        return self.run()

    def run(self) -> Signal:
        """Answer everything until the session needs more of its client."""
        while True:
            event = self.session.next_event()
            self.output += self.session.data_to_send()
            if event in {NEED_DATA, CLOSED}:
                return event
            assert event is not PAUSED
            self.events.append(event)
            self._give_what_is_owed(event)
            self.output += self.session.data_to_send()

    def _give_what_is_owed(self, event: Event) -> None:
        match event:
            case SenderGiven():
                self.session.answer(reply_to_sender(event.sender))
            case RecipientGiven():
                self.session.answer(reply_to_recipient(event.address))
            case MessageReceived():
                for index in self.settle_order(range(len(event.recipients))):
                    self.session.settle(index, reply_for_message(event.recipients[index]))
