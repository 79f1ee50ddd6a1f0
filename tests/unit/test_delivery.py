"""A batch of deliveries becomes files and outcomes, whatever fails on the way."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from services.contract import Delivery, Outcome, OutcomeKind, Reason
from services.store.delivery import Deliverer
from services.store.filesystem import FileSystem
from services.store.maildir import MailRoot
from services.store.report import DeliveryReport
from tests.support.faulty_files import Call, FaultyFiles, SlowDisk
from tests.support.mail import CONTENT, delivery, files_below, recipient

STORED = OutcomeKind.STORED
DEFERRED = OutcomeKind.DEFERRED


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "mail").mkdir()
    return tmp_path / "mail"


def deliverer(root: Path, files: FileSystem | None = None, clock: Callable[[], float] = lambda: 1e9) -> Deliverer:
    return Deliverer(MailRoot(root, files), hostname="host", clock=clock)


def at_noon(*recipients: str, **fields: object) -> Delivery:
    """A delivery with time left by the clock of `deliverer`."""
    return delivery(*recipients, deadline=2e9, **fields)  # type: ignore[arg-type]


def mailbox_files(root: Path, name: str, directory: str = "new") -> Sequence[Path]:
    mailbox = root / "example.org" / name
    return files_below(mailbox, directory) if mailbox.exists() else ()


def expected(name: str, content: bytes = CONTENT) -> bytes:
    return (
        b"Return-Path: <sender@example.net>\nDelivered-To: " + name.encode() + b"@example.org\n"
        b"Received: from mta by roost id d1\n" + content.replace(b"\r\n", b"\n")
    )


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts the one that lists, every time


def test_a_delivery_becomes_one_file(root: Path) -> None:
    """A stored delivery is one complete file in `new/`, under the name in its outcome, and `tmp/` is empty."""
    (report,) = deliverer(root).deliver([at_noon("alice")])
    (outcome,) = report.outcomes
    (file,) = files_below(root)
    data = expected("alice")
    assert file.read_bytes() == data
    assert file == root / "example.org/alice/new" / outcome.file
    size, virtual_size = len(data), len(data.replace(b"\n", b"\r\n"))
    assert outcome == Outcome(STORED, file=f"1000000000.M0Pd1.host,S={size},W={virtual_size}")
    assert (report.id, report.failures, report.bytes_written, len(report.fsync_s)) == ("d1", (), size, 2)


def test_every_recipient_gets_a_file_of_its_own(root: Path) -> None:
    """Several recipients, one of them twice and one in a folder, give as many files, each with its own Delivered-To."""
    one = delivery("alice", "bob", "alice", recipient("alice", "Lists.python"), deadline=2e9)
    (report,) = deliverer(root).deliver([one])
    assert [outcome.kind for outcome in report.outcomes] == [STORED] * 4
    alice, bob = root / "example.org/alice", root / "example.org/bob"
    for folder, outcome, name in zip(
        (alice, bob, alice, alice / ".Lists.python"), report.outcomes, ("alice", "bob", "alice", "alice"), strict=True
    ):
        assert (folder / "new" / outcome.file).read_bytes() == expected(name)
    assert [outcome.file.split("P")[1].split(".")[0] for outcome in report.outcomes] == ["d1-1", "d1-2", "d1-3", "d1-4"]
    assert len(files_below(root)) == 4


def test_reports_stand_in_the_order_of_the_batch(root: Path) -> None:
    """One report per delivery and one outcome per recipient, in order, also when some are refused."""
    batch = [
        at_noon("alice", id_="one"),
        delivery("alice", deadline=1.0, id_="two"),
        at_noon("../alice", "bob", id_="three"),
        at_noon(id_="four"),
        at_noon("bob", sender="a\nb", id_="five"),
    ]
    reports = deliverer(root).deliver(batch)
    assert [report.id for report in reports] == ["one", "two", "three", "four", "five"]
    assert [[(outcome.kind, outcome.reason) for outcome in report.outcomes] for report in reports] == [
        [(STORED, Reason.NONE)],
        [(DEFERRED, Reason.EXPIRED)],
        [(DEFERRED, Reason.PERMISSION), (STORED, Reason.NONE)],
        [],
        [(DEFERRED, Reason.UNREADABLE)],
    ]
    assert len(files_below(root)) == 2


@contextlib.contextmanager
def at_most_descriptors(number: int) -> Iterator[None]:
    """No more than so many descriptors may be open in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_large_batch_is_stored_with_few_descriptors(root: Path) -> None:
    """More files than a process may have open are stored in rounds, and no descriptor stays open."""
    before = open_descriptors()
    names = [f"user{number}" for number in range(150)]
    with at_most_descriptors(before + 220):
        reports = deliverer(root).deliver([at_noon(*names), *(at_noon(name) for name in names)])
    assert all(outcome.kind is STORED for report in reports for outcome in report.outcomes)
    assert len(files_below(root, "new")) == 300
    assert open_descriptors() == before


def test_a_batch_takes_the_memory_of_its_largest_content(root: Path) -> None:
    """Converted content is given up before the next delivery is converted, also if it could not be written."""
    content = b"x" * 1_000_000
    batch = [at_noon("../refused" if number % 2 else "alice", content=content) for number in range(20)]
    tracemalloc.start()
    try:
        deliverer(root).deliver(batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(content)


def test_an_expired_delivery_is_not_written(root: Path) -> None:
    """At its deadline and after it, a delivery is deferred for every recipient, and nothing is written or created."""
    for deadline in (1e9, 1e9 - 1):
        (report,) = deliverer(root).deliver([delivery("alice", "bob", deadline=deadline)])
        assert report.outcomes == (Outcome(DEFERRED, Reason.EXPIRED),) * 2
    assert list(root.iterdir()) == []


def test_a_delivery_begun_in_time_is_finished(root: Path) -> None:
    """A deadline that passes between two recipients splits nothing; the next delivery sees it."""
    times = iter([9.0, *[11.0] * 20])
    batch = [delivery("alice", "bob", deadline=10.0), delivery("carol", deadline=10.0)]
    reports = deliverer(root, clock=lambda: next(times)).deliver(batch)
    kinds = [[outcome.kind for outcome in report.outcomes] for report in reports]
    assert kinds == [[STORED, STORED], [DEFERRED]]


def test_what_is_stored_is_durable_first(root: Path) -> None:
    """Each file is fsynced before its rename, `new/` after all renames into it, once for the whole batch."""
    files = FaultyFiles()
    MailRoot(root).maildir("example.org/alice").close()
    deliverer(root, files).deliver([at_noon("alice", id_="one"), at_noon("alice", id_="two")])
    tmp, new = str(root / "example.org/alice/tmp"), str(root / "example.org/alice/new")
    steps = [(call.verb, call.what.removeprefix(f"{tmp}/")) for call in files.calls]
    steps = [step for step in steps if step[0] in {"write", "sync", "rename"}]
    one, two = dict.fromkeys(what for verb, what in steps if verb == "write")
    assert sorted(step for step in steps if step[1] == one) == [("rename", one), ("sync", one), ("write", one)]
    for name in (one, two):
        assert steps.index(("write", name)) < steps.index(("sync", name)) < steps.index(("rename", name))
    assert steps[-1] == ("sync", new)
    assert steps.count(("sync", new)) == 1


def test_a_slow_disk_changes_nothing(root: Path) -> None:
    """A kernel that takes a few bytes at a time gets all of them."""
    deliverer(root, SlowDisk(7)).deliver([at_noon("alice")])
    assert [file.read_bytes() for file in files_below(root)] == [expected("alice")]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, Reason.DISK_FULL),
        (errno.EDQUOT, Reason.OVER_QUOTA),
        (errno.EACCES, Reason.PERMISSION),
        (errno.EPERM, Reason.PERMISSION),
        (errno.EROFS, Reason.READ_ONLY),
        (errno.EIO, Reason.IO_ERROR),
        (errno.ENOENT, Reason.IO_ERROR),
        (errno.EMFILE, Reason.IO_ERROR),
    ],
)
def test_every_error_of_the_system_has_its_reason(root: Path, number: int, reason: Reason) -> None:
    """The client learns the kind of trouble; the log learns the step, the path and the system's text."""
    MailRoot(root).maildir("example.org/alice").close()
    files = FaultyFiles(_first(root, "write"), number)
    (report,) = deliverer(root, files).deliver([at_noon("alice")])
    assert report.outcomes == (Outcome(DEFERRED, reason),)
    (failure,) = report.failures
    assert (failure.position, failure.step, failure.bug) == (0, "write", None)
    assert failure.path.startswith(str(root / "example.org/alice"))
    assert failure.text == f"{errno.errorcode[number]}: {os.strerror(number)}"


def _first(root: Path, verb: str) -> int:
    """The number of the first call of a verb when alice, whose mailbox exists, gets a delivery."""
    files = FaultyFiles()
    deliverer(root, files).deliver([at_noon("alice")])
    return [call.verb for call in files.calls].index(verb)


BATCH = (
    at_noon("alice", "bob"),
    delivery(recipient("alice", "Lists.python"), "alice", deadline=2e9, content=b"Another\r\n"),
)
WANTED = {
    "alice": [expected("alice"), expected("alice", b"Another\r\n"), expected("alice", b"Another\r\n")],
    "bob": [expected("bob")],
}


def new_root(path: Path, mailboxes: str) -> Path:
    """An empty mail root, or one with the mailboxes of the batch; of another owner where the machine lets us."""
    path.mkdir()
    if os.geteuid() == 0:
        os.chown(path, 1234, 1234)
    if mailboxes == "existing":
        deliverer(path).deliver(BATCH)
        remove_files(path)
    return path


def remove_files(root: Path) -> None:
    for file in files_below(root):
        file.unlink()


@pytest.mark.parametrize("mailboxes", ["missing", "existing"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_fault_at_any_step_leaves_nothing_partial(tmp_path: Path, mailboxes: str, moment: str) -> None:
    """Whichever call fails, before or after its effect, files and outcomes agree, and a retry of the deferred works."""
    counting = FaultyFiles()
    deliverer(new_root(tmp_path / "count", mailboxes), counting).deliver(BATCH)
    failed = 0
    for step in range(len(counting.calls)):
        root = new_root(tmp_path / f"step{step}", mailboxes)
        before = open_descriptors()
        files = FaultyFiles(step, errno.EIO, after=moment == "after")
        reports = deliverer(root, files).deliver(BATCH)
        assert open_descriptors() == before, files.calls[step]
        check(root, reports, files.calls[step])
        failed += any(report.failures for report in reports)
        retry(root, reports)
        check_all_stored(root, files.calls[step])
    assert failed == len(counting.calls)


def check(root: Path, reports: Sequence[DeliveryReport], call: Call) -> None:
    """`new/` has exactly the files of the stored outcomes, whole, and `tmp/` has nothing."""
    stored = {outcome.file for report in reports for outcome in report.outcomes if outcome.kind is STORED}
    assert {file.name for file in files_below(root, "new")} == stored, call
    assert len(files_below(root)) == len(stored), call
    for file in files_below(root):
        assert file.read_bytes() in WANTED["alice"] + WANTED["bob"], call
    deferred = [outcome for report in reports for outcome in report.outcomes if outcome.kind is not STORED]
    assert all(outcome == Outcome(DEFERRED, Reason.IO_ERROR) for outcome in deferred), call
    assert len(deferred) == sum(len(report.failures) for report in reports), call


def retry(root: Path, reports: Sequence[DeliveryReport]) -> None:
    """What a client does: the same delivery again, for those recipients that were deferred."""
    again = [
        msgspec.structs.replace(
            one,
            recipients=tuple(
                to for to, outcome in zip(one.recipients, report.outcomes, strict=True) if outcome.kind is not STORED
            ),
        )
        for one, report in zip(BATCH, reports, strict=True)
    ]
    deliverer(root, clock=lambda: 1e9 + 1).deliver(again)


def check_all_stored(root: Path, call: Call) -> None:
    for name, wanted in WANTED.items():
        found = sorted(file.read_bytes() for file in mailbox_files(root, name))
        assert found == sorted(wanted), call


def test_a_failing_recipient_affects_no_other(root: Path) -> None:
    """A mailbox that cannot be written is deferred; the recipients before and after it are stored."""
    (root / "example.org").mkdir()
    (root / "example.org/bob").write_bytes(b"not a directory")
    (report,) = deliverer(root).deliver([at_noon("alice", "bob", "carol")])
    assert [outcome.kind for outcome in report.outcomes] == [STORED, DEFERRED, STORED]
    assert [failure.position for failure in report.failures] == [1]


def test_a_failed_fsync_of_new_is_not_believed_at_a_second_try(root: Path) -> None:
    """If the fsync of `new/` fails, all files that it was for are deferred and removed, and it is not tried again."""
    batch = [at_noon("alice", id_="one"), at_noon("alice", "bob", id_="two")]
    deliverer(root).deliver(batch)
    counting = FaultyFiles()
    deliverer(root, counting).deliver(batch)
    remove_files(root)
    sync_new = Call("sync", str(root / "example.org/alice/new"))
    files = FaultyFiles(counting.calls.index(sync_new), errno.EIO)
    one, two = deliverer(root, files).deliver(batch)
    assert [outcome.kind for outcome in (*one.outcomes, *two.outcomes)] == [DEFERRED, DEFERRED, STORED]
    assert [file.parent.parent.name for file in files_below(root)] == ["bob"]
    assert files.calls.count(sync_new) == 1
    assert [len(one.fsync_s), len(two.fsync_s)] == [2, 3]


class StuckFiles(FileSystem):
    """A volume that becomes read-only between the write and the rename, so that nothing can be cleaned up either."""

    def rename(self, name: str, source: int, target: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def unlink(self, name: str, parent: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_what_cannot_be_removed_is_named_in_the_log(root: Path) -> None:
    """If a failed file cannot be removed either, the outcome is that of the first error and the log tells of both."""
    (report,) = deliverer(root, StuckFiles()).deliver([at_noon("alice")])
    assert report.outcomes == (Outcome(DEFERRED, Reason.READ_ONLY),)
    text = "EROFS: Read-only file system"
    assert report.failures[0].text == f"{text}; its file is left behind: {text}"
    assert files_below(root, "new") == []


class BuggyFiles(FileSystem):
    """Has a bug that shows in one mailbox only, at the given verb."""

    def __init__(self, verb: str) -> None:
        self._verb = verb

    def _trip(self, verb: str, descriptor: int) -> None:
        if verb == self._verb and "/bob/" in self.real_path(descriptor):
            raise RuntimeError("a bug")

    def write(self, descriptor: int, parts: Sequence[bytes | memoryview]) -> int:
        self._trip("write", descriptor)
        return super().write(descriptor, parts)

    def sync(self, descriptor: int) -> None:
        self._trip("sync", descriptor)
        super().sync(descriptor)

    def rename(self, name: str, source: int, target: int) -> None:
        self._trip("rename", source)
        super().rename(name, source, target)


@pytest.mark.parametrize("verb", ["write", "sync", "rename"])
def test_a_bug_fails_only_what_it_happened_to(root: Path, verb: str) -> None:
    """An error that nobody expected defers that one file, is reported with its traceback, and leaves nothing behind."""
    MailRoot(root).maildir("example.org/bob").close()
    one, two = deliverer(root, BuggyFiles(verb)).deliver([at_noon("alice", "bob"), at_noon("carol")])
    assert [outcome.kind for outcome in (*one.outcomes, *two.outcomes)] == [STORED, DEFERRED, STORED]
    assert one.outcomes[1].reason is Reason.UNSPECIFIED
    (failure,) = one.failures
    assert isinstance(failure.bug, RuntimeError)
    assert failure.bug.__traceback__ is not None
    assert mailbox_files(root, "bob") == mailbox_files(root, "bob", "tmp") == []


def test_an_impossible_delivery_fails_alone(root: Path) -> None:
    """A delivery that no decoder would give, here without content, does not take its batch with it."""
    broken = msgspec.structs.replace(at_noon("alice"), content=None)
    one, two = deliverer(root).deliver([broken, at_noon("bob")])
    assert one.outcomes == (Outcome(DEFERRED, Reason.UNSPECIFIED),)
    assert two.outcomes[0].kind is STORED
    assert len(files_below(root)) == 1


def test_a_large_content_is_stored_byte_for_byte(root: Path) -> None:
    """20 MB arrive whole."""
    content = b"\xff\x00 x\r\n" * 3_500_000
    (report,) = deliverer(root).deliver([at_noon("alice", content=content)])
    (file,) = files_below(root)
    assert file.read_bytes() == expected("alice", content)
    assert report.bytes_written == file.stat().st_size
