"""Small file systems of the tests' own, mounted for one test and unmounted whatever happens. They need root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.folders import shared_folder

_IMAGE_BYTES = 16 << 20
# What mkfs.btrfs takes at least is a little more than 100 MiB; the image is sparse.
_BTRFS_IMAGE_BYTES = 128 << 20

NOBODY = 65534


def run(*command: str | Path) -> None:
    """Run a command of the system, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"


def run_or_skip(*command: str | Path) -> None:
    """Run a command of the system; a machine that does not allow it skips the test and says why."""
    if os.geteuid() != 0:
        pytest.skip(f"only root may {command[0]}")
    if shutil.which(command[0]) is None:
        pytest.skip(f"this machine has no {command[0]}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this machine does not allow {command[0]}: {(done.stderr or done.stdout).strip()}")


class Volume:
    """A mounted file system. `path` stays when it is unmounted: then it is a bare mount point."""

    def __init__(self, device: str | Path, kind: str, options: str, path: Path) -> None:
        self.path = path
        self._mount = ("mount", "-t", kind, "-o", options, device, path)

    def mount(self) -> None:
        run_or_skip(*self._mount)
        self.path.chmod(0o755)

    def unmount(self) -> None:
        run("umount", self.path)

    def remount(self, options: str) -> None:
        run("mount", "-o", f"remount,{options}", self.path)


@contextlib.contextmanager
def tmpfs(options: str = "size=1m") -> Iterator[Volume]:
    """A file system in memory."""
    with shared_folder("tmpfs") as folder, _mounted("tmpfs", "tmpfs", options, folder) as volume:
        yield volume


@contextlib.contextmanager
def ext4() -> Iterator[Volume]:
    """A file system of 16 MiB on a block device, which keeps its number over an unmount."""
    with (
        shared_folder("ext4") as folder,
        _image(folder, _IMAGE_BYTES, "mkfs.ext4", "-q", "-F") as device,
        _mounted(device, "ext4", "rw", folder) as volume,
    ):
        yield volume


@contextlib.contextmanager
def btrfs() -> Iterator[Volume]:
    """A file system that limits single folders; see `limit`."""
    with (
        shared_folder("btrfs") as folder,
        _image(folder, _BTRFS_IMAGE_BYTES, "mkfs.btrfs", "-q") as device,
        _mounted(device, "btrfs", "rw", folder) as volume,
    ):
        run_or_skip("btrfs", "quota", "enable", volume.path)
        yield volume


def make_limited_folder(path: Path, limit: str) -> None:
    """A new folder on a btrfs volume that holds at most so much."""
    run("btrfs", "subvolume", "create", path)
    set_limit(path, limit)


def set_limit(path: Path, limit: str) -> None:
    """Another limit for a limited folder, or `none`."""
    run("btrfs", "qgroup", "limit", limit, path)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Act as nobody, for the kernel's checks of permission."""
    if os.geteuid() != 0:
        pytest.skip("only root may become somebody else")
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Nobody, not even root, may change the directory."""
    run_or_skip("chattr", "+i", path)
    try:
        yield
    finally:
        run("chattr", "-i", path)


def fill(folder: Path) -> Callable[[], None]:
    """Fill the volume to its last byte, and give back what frees it again."""
    # Where nothing is mounted this would fill the disk of the machine.
    assert folder.is_mount(), folder
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return ballast.unlink


@contextlib.contextmanager
def _image(folder: Path, size: int, *mkfs: str) -> Iterator[Path]:
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(size)
    run_or_skip(*mkfs, image)
    run_or_skip("losetup", "--find", image)
    device = subprocess.run(
        ["losetup", "--noheadings", "--output", "NAME", "--associated", image],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def _mounted(device: str | Path, kind: str, options: str, folder: Path) -> Iterator[Volume]:
    volume = Volume(device, kind, options, folder / "volume")
    volume.path.mkdir()
    volume.mount()
    try:
        yield volume
    finally:
        if volume.path.is_mount():
            # Not by `umount` alone: a test that failed may still hold a file open.
            run("umount", "--lazy", volume.path)
