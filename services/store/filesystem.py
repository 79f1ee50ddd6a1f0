"""The system calls that the store makes on the mail volume, one verb each.

Knows descriptors and flags. Knows no mail, no order of steps and no recovery; every OSError passes through. It is a
class so that a test, or a fail point, can stand between the store and the kernel.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Final

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class FileSystem:
    """The kernel's own verbs. Descriptors are owed back to `close` or `close_directory`."""

    def open_directory(self, path: str, parent: int | None = None) -> int:
        """A descriptor of an existing directory; symlinks are followed, so see `real_path` for where it is."""
        return os.open(path, _DIRECTORY_FLAGS, dir_fd=parent)

    def real_path(self, descriptor: int) -> str:
        """Where an open directory is, free of symlinks."""
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - once per delivery and directory: Path is slow

    def make_directory(self, name: str, parent: int) -> None:
        """A directory for the owner alone."""
        os.mkdir(name, DIRECTORY_MODE, dir_fd=parent)

    def create_file(self, name: str, parent: int) -> int:
        """A descriptor of a new file for the owner alone. Raises FileExistsError rather than open an existing one."""
        return os.open(name, _FILE_FLAGS, FILE_MODE, dir_fd=parent)

    def write(self, descriptor: int, parts: Sequence[bytes | memoryview]) -> int:
        """How many bytes of the parts were taken, which may be fewer than there are."""
        return os.writev(descriptor, parts)

    def set_mode(self, descriptor: int, mode: int) -> None:
        """The exact permission bits, whatever the umask."""
        os.fchmod(descriptor, mode)

    def set_owner(self, descriptor: int, uid: int, gid: int) -> None:
        """Hand a file or directory to somebody else."""
        os.fchown(descriptor, uid, gid)

    def sync(self, descriptor: int) -> None:
        """A file's content, or a directory's entries, on stable storage."""
        os.fsync(descriptor)

    def rename(self, name: str, source: int, target: int) -> None:
        """Move a file between two directories under the same name."""
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)

    def unlink(self, name: str, parent: int) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=parent)

    def close(self, descriptor: int) -> None:
        """Give a file's descriptor back; it is gone even if this raises, which may tell of content that is lost."""
        os.close(descriptor)

    def close_directory(self, descriptor: int) -> None:
        """Give a directory's descriptor back. Never raises: nothing was written through it."""
        with contextlib.suppress(OSError):
            os.close(descriptor)
