"""The mail root and its maildirs: the single steps that bring a message into a mailbox.

Knows directories, their owner and one step at a time. Does not know which step comes when or what an error means to a
client: that is `delivery`. Blocking; knows no event loop.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from services.store.filesystem import FILE_MODE, FileSystem
from services.store.names import folder_directory, mailbox_components
from services.store.tree import Owner, Tree


class Maildir:
    """The open `tmp/` and `new/` of one maildir. Each verb is one step; which one comes when, the caller decides."""

    def __init__(self, files: FileSystem, path: str, tmp: int, new: int, owner: Owner | None) -> None:
        self.path = path
        self._files = files
        self._tmp = tmp
        self._new = new
        self._owner = owner

    def create(self, name: str) -> int:
        """The descriptor of a new file in `tmp/`, owed to `close_file`. An error means none was made."""
        return self._files.create_file(name, self._tmp)

    def write(self, descriptor: int, parts: Sequence[bytes]) -> None:
        """All of the parts, in order, the right mode and the right owner; nothing is durable yet."""
        self._files.set_mode(descriptor, FILE_MODE)
        if self._owner is not None:
            self._files.set_owner(descriptor, *self._owner)
        rest = sum(map(len, parts)) - self._files.write(descriptor, parts)
        if rest:
            self._write_rest(descriptor, memoryview(b"".join(parts))[-rest:])

    def _write_rest(self, descriptor: int, rest: memoryview) -> None:
        # A full disk takes a part first and raises only at the next call; so does a signal, or more than 2 GiB.
        while rest:
            taken = self._files.write(descriptor, (rest,))
            if not taken:
                raise OSError(errno.EIO, "the file system takes no more bytes and says no reason")
            rest = rest[taken:]

    def sync_file(self, descriptor: int) -> None:
        """The file's content on stable storage."""
        self._files.sync(descriptor)

    def close_file(self, descriptor: int) -> None:
        """The descriptor is gone, even if this raises."""
        self._files.close(descriptor)

    def show(self, name: str) -> None:
        """Move a file from `tmp/` to `new/`, where readers see it."""
        self._files.rename(name, self._tmp, self._new)

    def sync_new(self) -> None:
        """The names in `new/` on stable storage."""
        self._files.sync(self._new)

    def remove(self, name: str) -> None:
        """No file of this name in `tmp/` or `new/`, unless this raises."""
        for directory in (self._tmp, self._new):
            try:
                self._files.unlink(name, directory)
            except FileNotFoundError:
                continue
            return

    def close(self) -> None:
        """Give both directories back."""
        self._files.close_directory(self._tmp)
        self._files.close_directory(self._new)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MailRoot:
    """The directory that holds the mailboxes of a shard. It is never created here.

    Every use opens it anew by its path. A root that is on another device than at its first use is the bare mount point
    of a volume that is gone: OSError (ENODEV), until the volume is back or the process starts again.
    """

    def __init__(self, path: str | Path, files: FileSystem | None = None) -> None:
        self.path = str(path)
        self._files = files or FileSystem()
        self._device: int | None = None

    def free_bytes(self) -> int:
        """What unprivileged users may still write. Raises OSError if nothing can be delivered into this root."""
        root, _ = self._open()
        try:
            volume = os.fstatvfs(root)
            if volume.f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), self.path)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), self.path)
            return volume.f_bavail * volume.f_frsize
        finally:
            self._files.close_directory(root)

    def maildir(self, mailbox: str, folder: str = "") -> Maildir:
        """Open a maildir, and create it if it is missing; its directories are durable then. The caller closes it.

        Raises PathRefusedError for a path that is not below the root, by its text or through a symlink; OSError
        otherwise.
        """
        components = mailbox_components(mailbox)
        if folder:
            components.append(folder_directory(folder))
        root, owner = self._open()
        try:
            tmp, new = Tree(self._files, root, owner).open_or_create(components, is_folder=bool(folder))
        finally:
            self._files.close_directory(root)
        return Maildir(self._files, "/".join((self.path, *components)), tmp, new, owner)

    def _open(self) -> tuple[int, Owner | None]:
        """The root's descriptor, and who is to own what is created: its owner if we are root and it is not, or None."""
        root = self._files.open_directory(self.path)
        status = os.fstat(root)
        if self._device is None:
            self._device = status.st_dev
        if status.st_dev != self._device:
            self._files.close_directory(root)
            raise OSError(errno.ENODEV, "the mail root is on another device than before", self.path)
        foreign = os.geteuid() == 0 and status.st_uid != 0
        return root, Owner(status.st_uid, status.st_gid) if foreign else None
