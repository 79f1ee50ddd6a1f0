"""The directories below the mail root: open them, create what is missing, and never leave the root.

Knows symlinks, owners and what makes a new directory durable. Knows neither messages nor clients.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple

from services.store.filesystem import DIRECTORY_MODE, FILE_MODE, FileSystem
from services.store.names import PathRefusedError

_TMP: Final = "tmp"
_FOLDER_MARK: Final = "maildirfolder"


class Owner(NamedTuple):
    """To whom a service that runs as root hands what it creates."""

    uid: int
    gid: int


class Tree:
    """Everything below the open directory `root`, which stays the caller's.

    A symlink may lead from one place in the root to another. Where an opened directory really is, is asked of the
    kernel after opening it, so that nobody can exchange it between the check and the use.
    """

    def __init__(self, files: FileSystem, root: int, owner: Owner | None) -> None:
        self._files = files
        self._root = root
        self._owner = owner
        self._inside = files.real_path(root).rstrip("/") + "/"

    def open_or_create(self, components: Sequence[str], *, is_folder: bool) -> tuple[int, int]:
        """Descriptors of a maildir's `tmp/` and `new/`; what had to be created for them is durable.

        Raises PathRefusedError where a symlink leads out of the root.
        """
        path = "/".join(components)
        try:
            return self._open_pair(path)
        except FileNotFoundError:
            self._create(components, is_folder=is_folder)
        return self._open_pair(path)

    def _open_pair(self, path: str) -> tuple[int, int]:
        tmp = self._open(f"{path}/{_TMP}", self._root)
        try:
            self._check_finished(tmp)
            return tmp, self._open(f"{path}/new", self._root)
        except BaseException:
            self._files.close_directory(tmp)
            raise

    def _open(self, path: str, parent: int) -> int:
        directory = self._files.open_directory(path, parent)
        try:
            self._check_inside(directory)
        except BaseException:
            self._files.close_directory(directory)
            raise
        return directory

    def _check_inside(self, directory: int) -> None:
        where = self._files.real_path(directory)
        if not where.startswith(self._inside):
            raise PathRefusedError(f"{where!r} is outside the mail root")

    def _check_finished(self, tmp: int) -> None:
        if self._is_unfinished(tmp):
            raise FileNotFoundError

    def _create(self, components: Sequence[str], *, is_folder: bool) -> None:
        """Every missing directory of a maildir, and of the mailbox around a folder. What exists is left as it is."""
        mailbox = components[:-1] if is_folder else components
        with contextlib.ExitStack() as opened:
            directory = self._root
            for name in mailbox:
                directory = self._enter(name, directory, opened)
            self._complete(directory)
            if is_folder:
                directory = self._enter(components[-1], directory, opened)
                self._mark_as_folder(directory)
                self._complete(directory)

    def _enter(self, name: str, parent: int, opened: contextlib.ExitStack) -> int:
        directory = self._make(name, parent)
        opened.callback(self._files.close_directory, directory)
        self._files.sync(parent)
        return directory

    def _complete(self, maildir: int) -> None:
        """`tmp`, `new` and `cur`. `tmp` comes last, so where it stands everything else is there and durable.

        If a crash takes `tmp` away again, the next delivery comes here once more, and nothing is lost with it.
        """
        self._files.close_directory(self._make("cur", maildir))
        self._files.close_directory(self._make("new", maildir))
        self._files.sync(maildir)
        self._files.close_directory(self._make(_TMP, maildir))
        self._files.sync(maildir)

    def _make(self, name: str, parent: int) -> int:
        """A descriptor of a directory that existed, or exists now with the right mode and owner."""
        made = True
        try:
            self._files.make_directory(name, parent)
        except FileExistsError:
            made = False
        directory = self._open(name, parent)
        try:
            self._own(directory, made=made)
        except BaseException:
            self._files.close_directory(directory)
            raise
        return directory

    def _own(self, directory: int, *, made: bool) -> None:
        if made:
            self._files.set_mode(directory, DIRECTORY_MODE)
        if self._owner is not None and (made or self._is_unfinished(directory)):
            self._files.set_owner(directory, *self._owner)

    def _is_unfinished(self, directory: int) -> bool:
        """Whether a directory looks as one of ours does between its creation and its change of owner."""
        if self._owner is None:
            return False
        status = os.fstat(directory)
        return status.st_uid == 0 and stat.S_IMODE(status.st_mode) == DIRECTORY_MODE

    def _mark_as_folder(self, maildir: int) -> None:
        """The empty file by which Maildir++ tells a folder from a mailbox."""
        with contextlib.suppress(FileExistsError):
            mark = self._files.create_file(_FOLDER_MARK, maildir)
            try:
                self._files.set_mode(mark, FILE_MODE)
                if self._owner is not None:
                    self._files.set_owner(mark, *self._owner)
            finally:
                self._files.close(mark)
