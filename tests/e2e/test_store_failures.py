"""What the store cannot write comes back to the LMTP client, for exactly the recipients that it concerns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.folders import shared_folder
from tests.support.letters import SENDER, letter
from tests.support.lmtp_client import LmtpClient, Reply
from tests.support.stack import VMAIL, Stack, lock, make_mail_root, unlock
from tests.support.volumes import Volume, btrfs, make_limited_folder, tmpfs
from tests.support.waiting import wait_until

NewStack = Callable[..., Stack]

# Two contents fit into the volume, three do not.
CONTENT = letter(1, 1_500_000)
VOLUME_BYTES = 4_000_000


@pytest.fixture
def volume() -> Iterator[Volume]:
    with tmpfs(f"size={VOLUME_BYTES},uid={VMAIL},gid={VMAIL}") as volume:
        yield volume


@pytest.fixture
def mail_root() -> Iterator[Path]:
    """A mail root that can be moved away."""
    with shared_folder("root") as folder:
        yield make_mail_root(folder / "mail")


def deliver(stack: Stack, users: list[str], content: bytes) -> list[Reply]:
    """The final reply to each recipient, in the order of RCPT."""
    with LmtpClient(stack.lmtp) as client:
        client.open()
        return [reply for _, reply in client.deliver(SENDER, users, content).final()]


def codes(replies: list[Reply]) -> list[str]:
    return [f"{reply.code} {reply.enhanced}" for reply in replies]


def assert_discreet(stack: Stack, replies: list[Reply]) -> None:
    """No reply says where mail is kept; the log line with the same delivery id does."""
    for reply in replies:
        assert str(stack.mail_root) not in reply.text
        assert "Errno" not in reply.text
    deferred = next(reply for reply in replies if not reply.ok)
    [line] = stack.store.log.lines("not stored", delivery=deferred.text.split()[2])
    assert str(stack.mail_root) in line["path"]


def test_disk_full(volume: Volume, new_stack: NewStack) -> None:
    """ENOSPC: the recipients that still fit are stored, the one that does not gets 452 4.3.1, and later its mail."""
    stack = new_stack(mail_root=volume.path, ROOST_MIN_FREE_BYTES=0)
    users = stack.new_users(3)
    replies = deliver(stack, users, CONTENT)
    assert codes(replies) == ["250 2.0.0", "250 2.0.0", "452 4.3.1"]
    assert_discreet(stack, replies)
    assert [len(stack.files(user)) for user in users] == [1, 1, 0]
    assert stack.leftovers() == []

    stack.files(users[0])[0].unlink()
    assert codes(deliver(stack, users[2:], CONTENT)) == ["250 2.0.0"]
    assert len(stack.files(users[2])) == 1


def test_over_quota(new_stack: NewStack) -> None:
    """EDQUOT: the recipient that the quota has no room for gets 452 4.2.2, and nothing of its mail is left behind."""
    with btrfs() as volume:
        make_limited_folder(volume.path / "mail", "2M")
        stack = new_stack(mail_root=make_mail_root(volume.path / "mail"), ROOST_MIN_FREE_BYTES=0)
        replies = deliver(stack, stack.new_users(2), CONTENT)
        assert codes(replies) == ["250 2.0.0", "452 4.2.2"]
        assert_discreet(stack, replies)
        assert stack.leftovers() == []
        stack.stop()


def test_read_only_volume(volume: Volume, new_stack: NewStack) -> None:
    """EROFS: 451 4.3.0 for everybody and /readyz says no, until the volume is writable again."""
    stack = new_stack(mail_root=volume.path, ROOST_MIN_FREE_BYTES=0)
    users = stack.new_users(2)
    volume.remount("ro")
    replies = deliver(stack, users, letter(1))
    assert codes(replies) == ["451 4.3.0", "451 4.3.0"]
    wait_until(lambda: not stack.store.readiness()["mail_root"], what="the root is reported as not writable")

    volume.remount("rw")
    assert codes(deliver(stack, users, letter(1))) == ["250 2.0.0", "250 2.0.0"]
    stack.store.wait_ready()


def test_vanished_root(mail_root: Path, new_stack: NewStack) -> None:
    """A mail root that is gone: 451 4.3.0, it is not created anew, and mail flows again when it is back."""
    stack = new_stack(mail_root=mail_root)
    user = stack.new_user()
    away = mail_root.rename(mail_root.with_name("away"))
    assert codes(deliver(stack, [user], letter(1))) == ["451 4.3.0"]
    assert not mail_root.exists()
    wait_until(lambda: not stack.store.readiness()["mail_root"], what="the root is reported as gone")

    away.rename(mail_root)
    assert codes(deliver(stack, [user], letter(1))) == ["250 2.0.0"]
    stack.store.wait_ready()


def test_vanished_volume(volume: Volume, new_stack: NewStack) -> None:
    """A volume that is unmounted: 451 4.3.0, and nothing is written to the mount point below it."""
    stack = new_stack(mail_root=volume.path, ROOST_MIN_FREE_BYTES=0)
    user = stack.new_user()
    volume.unmount()
    make_mail_root(volume.path)
    assert codes(deliver(stack, [user], letter(1))) == ["451 4.3.0"]
    assert list(volume.path.iterdir()) == []


def test_one_of_several_recipients_fails(new_stack: NewStack) -> None:
    """EACCES in one mailbox: this recipient gets 451 4.3.0, in its place in the order, and the others are stored."""
    stack = new_stack()
    users = stack.new_users(4)
    locked = users[1]
    assert codes(deliver(stack, [locked], letter(1))) == ["250 2.0.0"]
    lock(stack.maildir(locked))
    replies = deliver(stack, users, letter(2))
    assert codes(replies) == ["250 2.0.0", "451 4.3.0", "250 2.0.0", "250 2.0.0"]
    assert [reply.text.split()[1] for reply in replies] == [f"<{user}>" for user in users]
    assert_discreet(stack, replies)
    assert [len(stack.files(user)) for user in users] == [1, 1, 1, 1]

    unlock(stack.maildir(locked))
    assert codes(deliver(stack, [locked], letter(2))) == ["250 2.0.0"]
    assert [len(stack.files(user)) for user in users] == [1, 2, 1, 1]
    assert stack.store.metric("roost_store_recipients_total", outcome="deferred", reason="permission") == 1


def test_a_mailbox_that_leads_out_of_the_root(mail_root: Path, new_stack: NewStack) -> None:
    """A symlink in the place of a mailbox is not followed out of the mail root: 451 4.3.0, and nothing is written."""
    stack = new_stack(mail_root=mail_root)
    user, other = stack.new_users(2)
    outside = make_mail_root(mail_root.with_name("outside"))
    make_mail_root(stack.maildir(user).parent)
    stack.maildir(user).symlink_to(outside)
    os.chown(stack.maildir(user), VMAIL, VMAIL, follow_symlinks=False)
    assert codes(deliver(stack, [user, other], letter(1))) == ["451 4.3.0", "250 2.0.0"]
    assert list(outside.iterdir()) == []
