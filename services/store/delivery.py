"""A batch of deliveries -> outcomes. The order of the durable steps lives here and only here.

Assumes failure: an outcome is deferred until the last durable step for its file has succeeded. For every file:

1. write it into `tmp/`         a full disk, a quota or a missing permission shows here
2. fsync the file               its content is on stable storage
3. rename it into `new/`        readers see it
4. fsync `new/`                 its name is on stable storage: now, and not before, it is stored

Each step is done for a round of files before the next one begins: file systems then commit them together, and one fsync
of `new/` serves all files of a maildir. A file whose step fails is removed, from `new/` too, since the client will
retry. If a reader has moved it to `cur/` by then, or if the removal fails or a power loss undoes it, the retry makes a
second copy: better than none.

Knows no broker and no event loop; blocking, for one worker thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from services.contract import Delivery, Outcome, OutcomeKind, Reason, Recipient
from services.store.maildir import Maildir, MailRoot
from services.store.message import Message
from services.store.names import FileNames
from services.store.report import DeliveryReport, Failure, describe, is_bug, reason_for

# Each file of a round holds up to three descriptors; the usual limit for a process is 1024.
_FILES_A_ROUND: Final = 64

_CLOSED: Final = -1
_NOT_STORED: Final = Outcome(OutcomeKind.DEFERRED, Reason.UNSPECIFIED)
_EXPIRED: Final = Outcome(OutcomeKind.DEFERRED, Reason.EXPIRED)


class Deliverer:
    """Delivers into the maildirs below one root, from one thread at a time."""

    def __init__(self, root: MailRoot, *, hostname: str, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._clock = clock
        self._names = FileNames(hostname, clock)

    def deliver(self, batch: Sequence[Delivery]) -> list[DeliveryReport]:
        """One report per delivery, in order. Whatever is wrong with a delivery or the volume is in its report.

        A delivery that is not begun before its deadline is not written. An error that is neither an OSError nor a
        refusal means a bug; it fails only the file that it happened to, and is in `Failure.bug` for the log.
        """
        tasks = [_Task(delivery) for delivery in batch]
        copies = [copy for task in tasks for copy in task.copies]
        for start in range(0, len(copies), _FILES_A_ROUND):
            _Round(self._root, self._names, self._clock).run(copies[start : start + _FILES_A_ROUND])
        return [task.report() for task in tasks]


class _Task:
    """One delivery of the batch while it is worked on."""

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.copies = [_Copy(self, position) for position in range(len(delivery.recipients))]
        self.fsync_s: list[float] = []
        self.bytes_written = 0
        self._begun = False
        self._message: Message | None = None

    def begin(self, now: float) -> bool:
        """Whether the delivery is begun, now or earlier; what is begun in time is finished for all recipients."""
        self._begun = self._begun or now < self.delivery.deadline
        return self._begun

    def message(self) -> Message:
        """The converted content, shared by the recipients. Raises MalformedError."""
        if self._message is None:
            self._message = Message(self.delivery)
        return self._message

    def release(self) -> None:
        """Free the converted content, which may be large, before the rest of the batch is converted."""
        self._message = None

    @contextlib.contextmanager
    def timed_fsync(self) -> Iterator[None]:
        """Note how long the fsync inside takes, even if it fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.fsync_s.append(time.perf_counter() - start)

    def report(self) -> DeliveryReport:
        """What is known now; final once all copies are done."""
        return DeliveryReport(
            self.delivery.id,
            tuple([copy.outcome for copy in self.copies]),
            tuple([copy.failure for copy in self.copies if copy.failure is not None]),
            self.bytes_written,
            tuple(self.fsync_s),
        )


class _Copy:
    """The file of one recipient on its way. `maildir` is set by the first step, `descriptor` while the file is open."""

    __slots__ = ("descriptor", "failure", "is_done", "maildir", "name", "outcome", "position", "recipient", "task")
    maildir: Maildir

    def __init__(self, task: _Task, position: int) -> None:
        self.task = task
        self.position = position
        self.recipient = task.delivery.recipients[position]
        self.outcome = _NOT_STORED
        self.failure: Failure | None = None
        self.is_done = False
        self.descriptor = _CLOSED
        self.name = ""

    def end(self, outcome: Outcome, failure: Failure | None = None) -> None:
        """No further step is done for this file."""
        self.outcome = outcome
        self.failure = failure
        self.is_done = True

    def unique(self) -> str:
        """What tells the files of a delivery apart in their names."""
        if len(self.task.copies) == 1:
            return self.task.delivery.id
        return f"{self.task.delivery.id}-{self.position + 1}"

    def close(self) -> None:
        """Give the descriptor back, if there is one."""
        if self.descriptor != _CLOSED:
            descriptor, self.descriptor = self.descriptor, _CLOSED
            self.maildir.close_file(descriptor)

    def discard(self) -> str:
        """No descriptor is left, and no file in `tmp/` or `new/`; or else what prevented it, for the log."""
        if not self.name:
            return ""
        try:
            with contextlib.suppress(OSError):
                self.close()
            self.maildir.remove(self.name)
        except Exception as error:  # noqa: BLE001 - cleaning up must not hide why it was needed
            return f"; its file is left behind: {describe(error)}"
        return ""


class _Round:
    """As many files as may be open at once, brought through all steps together."""

    def __init__(self, root: MailRoot, names: FileNames, clock: Callable[[], float]) -> None:
        self._root = root
        self._names = names
        self._clock = clock
        self._maildirs: dict[tuple[str, str], Maildir] = {}
        self._synced: dict[Maildir, Exception | None] = {}

    def run(self, copies: Sequence[_Copy]) -> None:
        """Every copy has its outcome, and nothing is left open."""
        try:
            for step in (self._write, self._sync_file, self._show, self._sync_new):
                for copy in copies:
                    if not copy.is_done:
                        self._attempt(step, copy)
        finally:
            for maildir in self._maildirs.values():
                maildir.close()

    def _attempt(self, step: Callable[[_Copy], None], copy: _Copy) -> None:
        try:
            step(copy)
        except Exception as error:  # noqa: BLE001 - a bug may fail only the file that it happened to
            text = describe(error) + copy.discard()
            bug = error if is_bug(error) else None
            failure = Failure(copy.position, step.__name__.strip("_"), self._path(copy), text, bug)
            copy.end(Outcome(OutcomeKind.DEFERRED, reason_for(error)), failure)

    def _path(self, copy: _Copy) -> str:
        if copy.name:
            return f"{copy.maildir.path}/new/{copy.name}"
        return f"{self._root.path}/{copy.recipient.mailbox} {copy.recipient.folder}".rstrip()

    def _write(self, copy: _Copy) -> None:
        if not copy.task.begin(self._clock()):
            copy.end(_EXPIRED)
            return
        try:
            copy.maildir = self._maildir(copy.recipient)
            self._write_message(copy, copy.task.message())
        finally:
            if copy is copy.task.copies[-1]:
                copy.task.release()

    def _maildir(self, recipient: Recipient) -> Maildir:
        key = (recipient.mailbox, recipient.folder)
        maildir = self._maildirs.get(key)
        if maildir is None:
            maildir = self._maildirs[key] = self._root.maildir(*key)
        return maildir

    def _write_message(self, copy: _Copy, message: Message) -> None:
        header = message.header_for(copy.recipient)
        size = len(header) + len(message.content)
        name = self._names.next(copy.unique(), size, message.virtual_size_with(header))
        copy.descriptor = copy.maildir.create(name)
        # From here on the name is ours, to be removed after a failure.
        copy.name = name
        copy.maildir.write(copy.descriptor, (header, message.content))
        copy.task.bytes_written += size

    def _sync_file(self, copy: _Copy) -> None:
        with copy.task.timed_fsync():
            copy.maildir.sync_file(copy.descriptor)
        copy.close()

    def _show(self, copy: _Copy) -> None:
        copy.maildir.show(copy.name)

    def _sync_new(self, copy: _Copy) -> None:
        # A second fsync after a failed one may succeed without having written anything, so all files of this round
        # share the verdict of the first.
        if copy.maildir not in self._synced:
            self._synced[copy.maildir] = self._error_of_sync(copy)
        if (error := self._synced[copy.maildir]) is not None:
            raise error
        copy.end(Outcome(OutcomeKind.STORED, file=copy.name))

    def _error_of_sync(self, copy: _Copy) -> Exception | None:
        try:
            with copy.task.timed_fsync():
                copy.maildir.sync_new()
        except Exception as error:  # noqa: BLE001 - raised again for each file
            return error
        return None
