"""The directories below the mail root: created completely, and never outside."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.store.maildir import Maildir, MailRoot
from services.store.names import PathRefusedError
from tests.support.faulty_files import FaultyFiles

HOSTILE = st.lists(
    st.sampled_from(
        ["..", ".", "", "/", "a", "new", "out", "in", "loop", "file", "\0", "\n", "ü", "\ud800", "n" * 256, "outside"]
    )
    | st.text(max_size=3),
    max_size=6,
).flatmap(lambda parts: st.sampled_from(["".join(parts), "/".join(parts)]))


def deliver_by_hand(maildir: Maildir, name: str = "x") -> None:
    """One file through the verbs, in their order."""
    descriptor = maildir.create(name)
    maildir.write(descriptor, (b"x",))
    maildir.close_file(descriptor)
    maildir.show(name)


def inventory(folder: Path) -> list[tuple[str, int]]:
    """Every name below a folder, and when its directory last changed."""
    return [(str(path), path.lstat().st_mtime_ns) for path in sorted([folder, *folder.rglob("*")])]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A mail root with a sibling `outside`, which nobody may touch."""
    for name in ("mail", "outside"):
        tmp_path.joinpath(name).mkdir()
    for name in ("tmp", "new", "cur"):
        (tmp_path / "outside" / "victim" / name).mkdir(parents=True)
    return tmp_path / "mail"


def test_a_missing_mailbox_is_created_as_dovecot_does(root: Path) -> None:
    """A mailbox and a folder get `tmp`, `new` and `cur`, all 0700, and only the folder gets its mark."""
    with MailRoot(root).maildir("brokkr.net/alice/", "Lists.python"):
        pass
    made = {str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}
    maildir = {"tmp": 0o700, "new": 0o700, "cur": 0o700}
    alice = "brokkr.net/alice"
    assert made == {
        "brokkr.net": 0o700,
        alice: 0o700,
        **{f"{alice}/{name}": mode for name, mode in maildir.items()},
        f"{alice}/.Lists.python": 0o700,
        f"{alice}/.Lists.python/maildirfolder": 0o600,
        **{f"{alice}/.Lists.python/{name}": mode for name, mode in maildir.items()},
    }


@pytest.mark.parametrize("umask", [0, 0o077, 0o027, 0o277])
def test_modes_do_not_depend_on_the_umask(root: Path, umask: int) -> None:
    """Directories are 0700 and files 0600, also where the umask takes the owner's own permission to write."""
    before = os.umask(umask)
    try:
        with MailRoot(root).maildir("alice", "Lists") as maildir:
            deliver_by_hand(maildir)
    finally:
        os.umask(before)
    made = list(root.rglob("*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()} == {0o700}
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()} == {
        "maildirfolder": 0o600,
        "x": 0o600,
    }


def test_directories_are_usable_under_a_strange_umask(root: Path) -> None:
    """Even a umask that takes rights from the owner leaves new directories at 0700."""
    before = os.umask(0o277)
    try:
        MailRoot(root).maildir("alice").close()
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")} == {0o700}


def test_every_new_directory_is_durable_before_it_is_used(root: Path) -> None:
    """After each directory is made its parent is fsynced, and `tmp`, which says that all is done, comes last."""
    files = FaultyFiles()
    MailRoot(root, files).maildir("brokkr.net/alice").close()
    steps = [call for call in files.calls if call.verb in {"make_directory", "sync"}]
    alice = str(root / "brokkr.net/alice")
    assert steps == [
        ("make_directory", "brokkr.net"),
        ("sync", str(root)),
        ("make_directory", "alice"),
        ("sync", str(root / "brokkr.net")),
        ("make_directory", "cur"),
        ("make_directory", "new"),
        ("sync", alice),
        ("make_directory", "tmp"),
        ("sync", alice),
    ]


@pytest.mark.parametrize("missing", ["tmp", "new"])
def test_an_unfinished_mailbox_is_completed(root: Path, missing: str) -> None:
    """A mailbox that lacks a directory gets it, and what it has stays as it is."""
    mail_root = MailRoot(root)
    with mail_root.maildir("alice") as maildir:
        deliver_by_hand(maildir, "first")
    with contextlib.suppress(FileNotFoundError):
        (root / "alice/new/first").rename(root / "alice/cur/first")
    (root / "alice" / missing).rmdir()
    with mail_root.maildir("alice") as maildir:
        deliver_by_hand(maildir, "second")
    assert (root / "alice/cur/first").exists()
    assert (root / "alice/new/second").exists()


def test_an_existing_mailbox_keeps_its_mode(root: Path) -> None:
    """Directories that somebody else made keep the mode that they have."""
    (root / "alice").mkdir(mode=0o750)
    MailRoot(root).maildir("alice").close()
    assert stat.S_IMODE((root / "alice").stat().st_mode) == 0o750


@pytest.mark.parametrize("target", ["real", "../mail/real"])
def test_a_symlink_inside_the_root_is_followed(root: Path, target: str) -> None:
    """A mailbox may be a symlink to another place below the root."""
    (root / "real").mkdir()
    (root / "link").symlink_to(target)
    with MailRoot(root).maildir("link") as maildir:
        deliver_by_hand(maildir)
    assert (root / "real/new/x").exists()


def test_the_root_itself_may_be_a_symlink(root: Path) -> None:
    """What counts is the root's real path."""
    link = root.parent / "link"
    link.symlink_to(root)
    with MailRoot(link).maildir("alice") as maildir:
        deliver_by_hand(maildir)
    assert (root / "alice/new/x").exists()


@pytest.mark.parametrize(
    ("link", "target", "mailbox", "folder"),
    [
        ("alice", "../outside/victim", "alice", ""),
        ("alice", "{outside}/victim", "alice", ""),
        ("alice", "../outside", "alice", ""),
        ("alice", "../outside", "alice/victim", ""),
        ("alice", "../outside", "alice/newcomer", ""),
        ("alice", "..", "alice", ""),
        ("alice/tmp", "{outside}/victim/tmp", "alice", ""),
        ("alice/new", "{outside}/victim/new", "alice", ""),
        ("alice/cur", "{outside}/victim/cur", "alice", ""),
        ("alice/.Lists", "{outside}/victim", "alice", "Lists"),
        ("alice", "/proc/self/cwd", "alice", ""),
        ("alice", "../mail-of-others", "alice", ""),
    ],
)
def test_a_symlink_out_of_the_root_is_refused(root: Path, link: str, target: str, mailbox: str, folder: str) -> None:
    """Whichever part of the path leads out, it is refused, and outside nothing changes."""
    outside = root.parent / "outside"
    (root.parent / "mail-of-others").mkdir()
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).symlink_to(target.format(outside=outside))
    before = inventory(outside)
    with pytest.raises(PathRefusedError):
        MailRoot(root).maildir(mailbox, folder)
    assert inventory(outside) == before


@pytest.mark.parametrize("target", ["nowhere", "../outside/nowhere", "alice"])
def test_a_symlink_to_nothing_creates_nothing(root: Path, target: str) -> None:
    """A dangling or circular symlink is an error, not an invitation to create its target."""
    (root / "alice").symlink_to(target)
    before = inventory(root.parent / "outside")
    with pytest.raises(OSError):
        MailRoot(root).maildir("alice")
    assert inventory(root.parent / "outside") == before
    assert not (root / "nowhere").exists()


@given(HOSTILE, HOSTILE)
def test_no_path_leaves_the_root(mailbox: str, folder: str) -> None:
    """Whatever mailbox and folder are, delivery is below the root or refused, and outside nothing changes."""
    with tempfile.TemporaryDirectory() as scratch:
        root, outside = Path(scratch, "mail"), Path(scratch, "outside")
        root.mkdir()
        (outside / "a").mkdir(parents=True)
        for link, target in (("out", "../outside"), ("in", "a"), ("loop", "loop")):
            (root / link).symlink_to(target)
        (root / "file").touch()
        before = inventory(outside)
        with contextlib.suppress(PathRefusedError, OSError), MailRoot(root).maildir(mailbox, folder) as maildir:
            deliver_by_hand(maildir)
            assert len(list(root.rglob("new/x"))) >= 1
        assert inventory(outside) == before
        assert sorted(Path(scratch).iterdir()) == [root, outside]


@contextlib.contextmanager
def exchanging(link: Path, *targets: Path) -> Iterator[None]:
    """Another thread points the symlink from one target to the next, as fast as it can; it always exists."""
    stop = threading.Event()
    link.symlink_to(targets[0])

    def exchange() -> None:
        for target in itertools.cycle(targets):
            if stop.is_set():
                return
            following = link.with_name("following")
            following.symlink_to(target)
            following.replace(link)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_an_exchanged_directory_does_not_lead_out(root: Path) -> None:
    """A mailbox whose path turns out of the root and back while it is opened is never written outside."""
    outside = root.parent / "outside"
    mail_root = MailRoot(root)
    mail_root.maildir("inside/victim").close()
    before = inventory(outside)
    seen: Counter[str] = Counter()
    with exchanging(root / "home", root / "inside", outside):
        for name in within_seconds(30):
            try:
                with mail_root.maildir("home/victim") as maildir:
                    deliver_by_hand(maildir, name)
                seen["delivered"] += 1
            except PathRefusedError:
                seen["refused"] += 1
            if min(seen["delivered"], seen["refused"]) >= 200:
                break
    assert inventory(outside) == before
    assert min(seen["delivered"], seen["refused"]) >= 200


def within_seconds(limit_s: float) -> Iterator[str]:
    """Names, until the time is up."""
    until = time.monotonic() + limit_s
    for number in itertools.takewhile(lambda _: time.monotonic() < until, itertools.count()):
        yield f"x{number}"
