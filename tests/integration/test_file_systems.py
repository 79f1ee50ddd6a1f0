"""The store's file side on real file systems that are full, over quota, forbidden, read-only or gone."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from services.contract import Delivery, OutcomeKind, Reason
from services.store.delivery import Deliverer
from services.store.maildir import MailRoot
from tests.support.mail import delivery, files_below, recipient
from tests.support.volumes import (
    NOBODY,
    Volume,
    btrfs,
    ext4,
    fill,
    immutable,
    make_limited_folder,
    set_limit,
    tmpfs,
    unprivileged,
)

STORED = (OutcomeKind.STORED, Reason.NONE)
LARGE = b"Subject: large\r\n\r\n" + b"0123456789abcdef\r\n" * 8192

Verdict = tuple[OutcomeKind, Reason]


def deferred(reason: Reason) -> Verdict:
    return OutcomeKind.DEFERRED, reason


class Store:
    """A deliverer for one root, as a running store has it, that may act as another user."""

    def __init__(self, root: Path, acting: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.root = root
        self._acting = acting
        self.mail_root = MailRoot(root)
        self._deliverer = Deliverer(self.mail_root, hostname="host")

    def deliver(self, *recipients: str, content: bytes = b"Subject: small\r\n") -> list[Verdict]:
        """The verdict for each recipient; whatever it is, `tmp/` is empty and `new/` has only whole files."""
        (verdicts,) = self.deliver_batch(delivery(*recipients, content=content))
        return verdicts

    def deliver_batch(self, *batch: Delivery) -> list[list[Verdict]]:
        with self._acting():
            reports = self._deliverer.deliver(batch)
        for report in reports:
            assert not any(failure.bug for failure in report.failures), report.failures
            assert not any("left behind" in failure.text for failure in report.failures), report.failures
        if self.root.exists():
            self._check_files()
        return [[(outcome.kind, outcome.reason) for outcome in report.outcomes] for report in reports]

    def _check_files(self) -> None:
        assert files_below(self.root, "tmp") == []
        for file in files_below(self.root, "new"):
            assert file.stat().st_size == int(file.name.split(",S=")[1].split(",")[0])

    def count(self, name: str) -> int:
        """How many messages a mailbox has."""
        return len(files_below(self.root / "example.org" / name, "new"))


@pytest.fixture(params=[tmpfs, ext4], ids=["tmpfs", "ext4"])
def volume(request: pytest.FixtureRequest) -> Iterator[Volume]:
    with request.param() as mounted:
        yield mounted


@pytest.fixture
def device_volume() -> Iterator[Volume]:
    with ext4() as mounted:
        yield mounted


@pytest.fixture
def store(volume: Volume) -> Store:
    root = volume.path / "mail"
    root.mkdir()
    return Store(root)


def test_a_full_disk_defers_until_there_is_room(store: Store, volume: Volume) -> None:
    """On a full volume mail is deferred as `disk_full`; once there is room again it is stored."""
    assert store.deliver("alice", "bob") == [STORED, STORED]
    free = fill(volume.path)
    assert store.deliver("alice", "bob", content=LARGE) == [deferred(Reason.DISK_FULL)] * 2
    free()
    assert store.deliver("alice", "bob", content=LARGE) == [STORED, STORED]
    assert (store.count("alice"), store.count("bob")) == (2, 2)


def test_a_message_that_does_not_fit_leaves_room_for_others() -> None:
    """A file that was written in part is removed at once, so that a smaller one of the same batch fits."""
    with tmpfs("size=256k") as volume:
        store = Store(volume.path)
        batch = delivery("alice", content=LARGE * 3), delivery("bob", content=LARGE)
        assert store.deliver_batch(*batch) == [[deferred(Reason.DISK_FULL)], [STORED]]


def test_a_volume_without_inodes_is_full() -> None:
    """Where no mailbox can be created any more the disk is full, too, and a half-made mailbox is completed later."""
    with tmpfs("size=1m,nr_inodes=12") as volume:
        store = Store(volume.path)
        assert store.deliver("alice") == [STORED]
        ballast = [volume.path / f"ballast{number}" for number in range(3)]
        for file in ballast:
            file.touch()
        assert store.deliver("bob") == [deferred(Reason.DISK_FULL)]
        for file in ballast:
            file.unlink()
        assert store.deliver("bob") == [STORED]


def test_a_mailbox_over_quota_defers_alone() -> None:
    """A mailbox over its quota is deferred as `over_quota`, its neighbour is stored; more quota mends it."""
    with btrfs() as volume:
        (volume.path / "example.org").mkdir()
        make_limited_folder(volume.path / "example.org/alice", "1M")
        store = Store(volume.path)
        assert store.deliver("alice", "bob") == [STORED, STORED]
        large = LARGE * 16
        assert store.deliver("alice", "bob", content=large) == [deferred(Reason.OVER_QUOTA), STORED]
        set_limit(volume.path / "example.org/alice", "none")
        assert store.deliver("alice", content=large) == [STORED]
        assert (store.count("alice"), store.count("bob")) == (2, 2)


@pytest.mark.parametrize("forbidden", ["example.org/alice", "example.org/alice/tmp", "example.org/alice/new"])
def test_a_forbidden_mailbox_defers_alone(store: Store, forbidden: str) -> None:
    """What the store's user may not write is deferred as `permission`; the others are stored; a chown mends it."""
    os.chown(store.root, NOBODY, NOBODY)
    user = Store(store.root, unprivileged)
    assert user.deliver("alice", "bob") == [STORED, STORED]
    os.chown(store.root / forbidden, 0, 0)
    assert user.deliver("alice", "bob") == [deferred(Reason.PERMISSION), STORED]
    os.chown(store.root / forbidden, NOBODY, NOBODY)
    assert user.deliver("alice", "bob") == [STORED, STORED]
    assert (store.count("alice"), store.count("bob")) == (2, 3)


def test_a_root_that_may_not_be_written_defers(store: Store) -> None:
    """Where no mailbox may be created, mail is deferred as `permission`, and nothing is created."""
    assert Store(store.root, unprivileged).deliver("alice") == [deferred(Reason.PERMISSION)]
    assert list(store.root.iterdir()) == []


def test_a_read_only_volume_defers_until_it_is_writable(store: Store, volume: Volume) -> None:
    """On a read-only volume old and new mailboxes are deferred as `read_only`; afterwards both are stored."""
    assert store.deliver("alice") == [STORED]
    volume.remount("ro")
    assert store.deliver("alice", "bob") == [deferred(Reason.READ_ONLY)] * 2
    with pytest.raises(OSError, match="Read-only"):
        store.mail_root.free_bytes()
    volume.remount("rw")
    assert store.deliver("alice", "bob") == [STORED, STORED]
    assert store.mail_root.free_bytes() > 0


def test_a_vanished_root_is_never_created(store: Store) -> None:
    """While the root is away mail is deferred and nothing appears in its place; when it is back mail is stored."""
    assert store.deliver("alice") == [STORED]
    away = store.root.rename(store.root.with_name("away"))
    assert store.deliver("alice", "bob") == [deferred(Reason.IO_ERROR)] * 2
    assert not store.root.exists()
    away.rename(store.root)
    assert store.deliver("alice", "bob") == [STORED, STORED]
    assert store.count("alice") == 2


def test_nothing_is_written_below_a_bare_mount_point(device_volume: Volume) -> None:
    """When the volume is unmounted mail is deferred, not written to the disk below; when it is back mail is stored."""
    store = Store(device_volume.path)
    assert store.deliver("alice") == [STORED]
    device_volume.unmount()
    assert store.deliver("alice", "bob") == [deferred(Reason.IO_ERROR)] * 2
    assert list(device_volume.path.iterdir()) == []
    device_volume.mount()
    assert store.deliver("alice", "bob") == [STORED, STORED]
    assert store.count("alice") == 2


@pytest.mark.parametrize("name", ["tmp", "new"])
def test_a_file_in_place_of_a_directory_defers_alone(store: Store, name: str) -> None:
    """A maildir whose `tmp` or `new` is no directory is deferred, the file stays; its neighbour is stored."""
    assert store.deliver("alice", "bob") == [STORED, STORED]
    place = store.root / "example.org/alice" / name
    place.rename(place.with_name("aside"))
    place.write_text("mine")
    assert store.deliver("alice", "bob") == [deferred(Reason.IO_ERROR), STORED]
    assert place.read_text() == "mine"
    place.unlink()
    place.with_name("aside").rename(place)
    assert store.deliver("alice", "bob") == [STORED, STORED]


@pytest.mark.parametrize("name", ["tmp", "new"])
def test_an_immutable_directory_defers_alone(device_volume: Volume, name: str) -> None:
    """A directory that not even root may change is deferred as `permission`, before or after the file was written."""
    store = Store(device_volume.path)
    assert store.deliver("alice", "bob") == [STORED, STORED]
    with immutable(store.root / "example.org/alice" / name):
        assert store.deliver("alice", "bob") == [deferred(Reason.PERMISSION), STORED]
    assert store.deliver("alice", "bob") == [STORED, STORED]
    assert (store.count("alice"), store.count("bob")) == (2, 3)


def test_root_hands_all_that_it_creates_to_the_owner_of_the_root(store: Store) -> None:
    """A store that runs as root leaves what it creates to the owner of the mail root, as whom Dovecot reads it."""
    os.chown(store.root, 1234, 5678)
    assert store.deliver_batch(delivery("alice", recipient("alice", "Lists"))) == [[STORED, STORED]]
    created = list(store.root.rglob("*"))
    assert len(created) == 2 + 3 + 1 + 3 + 1 + 2
    assert {(path.stat().st_uid, path.stat().st_gid) for path in created} == {(1234, 5678)}
    assert {stat.S_IMODE(path.stat().st_mode) for path in created if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in created if path.is_file()} == {0o600}


@pytest.mark.parametrize("unfinished", ["example.org", "example.org/alice", "example.org/alice/tmp"])
def test_what_a_killed_store_left_to_root_is_handed_over(store: Store, unfinished: str) -> None:
    """A directory that a store was killed over, before it changed the owner, gets its owner at the next delivery."""
    os.chown(store.root, 1234, 5678)
    (store.root / unfinished).mkdir(parents=True, mode=0o700)
    for path in store.root.rglob("*"):
        path.chmod(0o700)
    assert store.deliver("alice") == [STORED]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in store.root.rglob("*")} == {(1234, 5678)}


def test_a_mailbox_whose_last_directory_was_left_to_root_is_handed_over(store: Store) -> None:
    """A mailbox that is complete but for the owner of its last directory gets that, too."""
    os.chown(store.root, 1234, 5678)
    assert store.deliver("alice") == [STORED]
    os.chown(store.root / "example.org/alice/tmp", 0, 0)
    assert store.deliver("alice") == [STORED]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in store.root.rglob("*")} == {(1234, 5678)}


def test_directories_of_others_keep_their_owner(store: Store) -> None:
    """A store that runs as root leaves to others what it did not create, root's own shared directories included."""
    os.chown(store.root, 1234, 5678)
    for name, owner, mode in (("example.org", 0, 0o755), ("example.org/alice", 4321, 0o700)):
        path = store.root / name
        path.mkdir()
        path.chmod(mode)
        os.chown(path, owner, owner)
    assert store.deliver("alice") == [STORED]
    assert (store.root / "example.org").stat().st_uid == 0
    assert (store.root / "example.org/alice").stat().st_uid == 4321
    assert (store.root / "example.org/alice/new").stat().st_uid == 1234
