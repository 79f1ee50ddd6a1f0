"""Folders that daemons under other users can reach, which pytest's tmp_path (mode 0700) is not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def shared_folder(name: str) -> Iterator[Path]:
    """A new folder with mode 0711, removed at the end.

    Its path is short: a Unix socket in it has 107 bytes for its own.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"roost-{name}-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
