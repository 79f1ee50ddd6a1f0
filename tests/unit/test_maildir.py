"""The single steps in a maildir, and the root that it is in."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from services.store.maildir import MailRoot
from tests.support.faulty_files import SlowDisk
from tests.support.mail import files_below


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "mail").mkdir()
    return tmp_path / "mail"


def test_a_file_is_seen_only_after_its_rename(root: Path) -> None:
    """A file is in `tmp/` until it is shown, and in `new/` from then on."""
    with MailRoot(root).maildir("alice") as maildir:
        descriptor = maildir.create("name")
        maildir.write(descriptor, (b"a", b"", b"b"))
        maildir.sync_file(descriptor)
        maildir.close_file(descriptor)
        assert files_below(root) == [root / "alice/tmp/name"]
        maildir.show("name")
        maildir.sync_new()
    assert files_below(root) == [root / "alice/new/name"]
    assert (root / "alice/new/name").read_bytes() == b"ab"


def test_an_existing_file_is_never_written_to(root: Path) -> None:
    """A name that is taken in `tmp/` is an error, and the file stays as it is."""
    with MailRoot(root).maildir("alice") as maildir:
        (root / "alice/tmp/name").write_bytes(b"another's")
        with pytest.raises(FileExistsError):
            maildir.create("name")
    assert (root / "alice/tmp/name").read_bytes() == b"another's"


@pytest.mark.parametrize("most", [1, 2, 3, 5, 100])
def test_a_short_write_is_continued(root: Path, most: int) -> None:
    """However few bytes the kernel takes at a time, the file is complete."""
    with MailRoot(root, SlowDisk(most)).maildir("alice") as maildir:
        descriptor = maildir.create("name")
        maildir.write(descriptor, (b"head", b"content"))
        maildir.close_file(descriptor)
    assert (root / "alice/tmp/name").read_bytes() == b"headcontent"


def test_a_disk_that_takes_nothing_is_an_error(root: Path) -> None:
    """A write that takes no byte and gives no reason ends in an error, not in a loop."""
    with MailRoot(root, SlowDisk(0)).maildir("alice") as maildir:
        descriptor = maildir.create("name")
        with pytest.raises(OSError):
            maildir.write(descriptor, (b"x",))
        maildir.close_file(descriptor)


@pytest.mark.parametrize("where", ["tmp", "new", "cur"])
def test_a_file_is_removed_wherever_it_is(root: Path, where: str) -> None:
    """A file is removed from `tmp/` and `new/`; in `cur/` it belongs to its owner; a missing one is no error."""
    with MailRoot(root).maildir("alice") as maildir:
        (root / "alice" / where / "name").touch()
        maildir.remove("name")
    assert bool(files_below(root)) is (where == "cur")


def test_a_missing_root_is_not_created(root: Path) -> None:
    """Without its root nothing is opened or made; when the root is back, all is as before."""
    mail_root = MailRoot(root)
    mail_root.maildir("alice").close()
    away = root.rename(root.with_name("away"))
    for use in (mail_root.free_bytes, lambda: mail_root.maildir("alice"), lambda: mail_root.maildir("bob")):
        with pytest.raises(FileNotFoundError):
            use()
    assert not root.exists()
    away.rename(root)
    mail_root.maildir("bob").close()


def test_a_root_on_another_device_is_refused(root: Path) -> None:
    """A root that is on another device than before is the place of a volume that is gone: nothing is written there."""
    mail_root = MailRoot(root)
    mail_root.maildir("alice").close()
    shutil.rmtree(root)
    root.symlink_to("/proc")
    with pytest.raises(OSError) as refused:
        mail_root.maildir("alice")
    assert refused.value.errno == errno.ENODEV


def test_free_bytes_are_those_of_the_volume(root: Path) -> None:
    """A usable root tells how many bytes are left for everybody."""
    assert 0 < MailRoot(root).free_bytes() <= shutil.disk_usage(root).total
