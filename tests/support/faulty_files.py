"""A file system that notes each call and lets one of them fail, before or after it has had its effect."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from services.store.filesystem import FileSystem


class Call(NamedTuple):
    """One system call: the verb and what it was done to, for reading in a test's output."""

    verb: str
    what: str


class FaultyFiles(FileSystem):
    """The real file system, but the call with the number `fails_at` raises, and if it says so after its effect.

    A kernel that refuses to open or create leaves no descriptor, so these always fail before; `close` always gives the
    descriptor back, so it always fails after.
    """

    def __init__(self, fails_at: int | None = None, number: int = 0, *, after: bool = False) -> None:
        self.calls: list[Call] = []
        self._fails_at = fails_at
        self._number = number
        self._after = after

    def _do(self, verb: str, what: str, act: Callable[[], Any]) -> Any:
        fails = len(self.calls) == self._fails_at
        self.calls.append(Call(verb, what))
        after = verb == "close" or (self._after and verb not in {"open_directory", "create_file"})
        if fails and not after:
            raise OSError(self._number, os.strerror(self._number))
        try:
            return act()
        finally:
            if fails:
                raise OSError(self._number, os.strerror(self._number))

    def open_directory(self, path: str, parent: int | None = None) -> int:
        return self._do("open_directory", path, lambda: super(FaultyFiles, self).open_directory(path, parent))

    def real_path(self, descriptor: int) -> str:
        return self._do("real_path", _where(descriptor), lambda: super(FaultyFiles, self).real_path(descriptor))

    def make_directory(self, name: str, parent: int) -> None:
        self._do("make_directory", name, lambda: super(FaultyFiles, self).make_directory(name, parent))

    def create_file(self, name: str, parent: int) -> int:
        return self._do("create_file", name, lambda: super(FaultyFiles, self).create_file(name, parent))

    def write(self, descriptor: int, parts: Sequence[bytes | memoryview]) -> int:
        return self._do("write", _where(descriptor), lambda: super(FaultyFiles, self).write(descriptor, parts))

    def set_mode(self, descriptor: int, mode: int) -> None:
        self._do("set_mode", _where(descriptor), lambda: super(FaultyFiles, self).set_mode(descriptor, mode))

    def set_owner(self, descriptor: int, uid: int, gid: int) -> None:
        self._do("set_owner", _where(descriptor), lambda: super(FaultyFiles, self).set_owner(descriptor, uid, gid))

    def sync(self, descriptor: int) -> None:
        self._do("sync", _where(descriptor), lambda: super(FaultyFiles, self).sync(descriptor))

    def rename(self, name: str, source: int, target: int) -> None:
        self._do("rename", name, lambda: super(FaultyFiles, self).rename(name, source, target))

    def unlink(self, name: str, parent: int) -> None:
        self._do("unlink", name, lambda: super(FaultyFiles, self).unlink(name, parent))

    def close(self, descriptor: int) -> None:
        self._do("close", _where(descriptor), lambda: super(FaultyFiles, self).close(descriptor))


class SlowDisk(FileSystem):
    """Takes at most `most` bytes at a time, as a nearly full disk does; with 0, none at all."""

    def __init__(self, most: int) -> None:
        self._most = most

    def write(self, descriptor: int, parts: Sequence[bytes | memoryview]) -> int:
        data = b"".join(parts)[: self._most]
        return os.write(descriptor, data)


def _where(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())
