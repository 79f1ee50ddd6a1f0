"""What became of a delivery: the outcomes for the client, and beside them what is only for the log and the metrics."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from services.contract import Outcome, Reason
from services.store.message import MalformedError
from services.store.names import PathRefusedError

_REASONS: Final = {
    errno.ENOSPC: Reason.DISK_FULL,
    errno.EDQUOT: Reason.OVER_QUOTA,
    errno.EACCES: Reason.PERMISSION,
    errno.EPERM: Reason.PERMISSION,
    errno.EROFS: Reason.READ_ONLY,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one recipient's file is not stored, for the log: it names paths, so it never goes into an acknowledgement.

    `position` is the recipient's in the delivery; `bug` is an error that nobody expected, with its traceback, or None.
    """

    position: int
    step: str
    path: str
    text: str
    bug: Exception | None = None


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """The outcomes of one delivery, one for each of its recipients, in their order.

    `bytes_written` counts complete files in `tmp/`, whatever became of them. `fsync_s` has the seconds of each fsync;
    one that served several deliveries of the batch is in the first one's report only, so sums over a batch are right.
    """

    id: str
    outcomes: tuple[Outcome, ...]
    failures: tuple[Failure, ...] = ()
    bytes_written: int = 0
    fsync_s: tuple[float, ...] = ()


def reason_for(error: Exception) -> Reason:
    """What the client may know of an error."""
    match error:
        case OSError():
            return _REASONS.get(error.errno or 0, Reason.IO_ERROR)
        case PathRefusedError():
            return Reason.PERMISSION
        case MalformedError():
            return Reason.UNREADABLE
        case _:
            return Reason.UNSPECIFIED


def describe(error: Exception) -> str:
    """An error in one line for the log."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{errno.errorcode.get(error.errno, error.errno)}: {error.strerror}"
    return f"{type(error).__name__}: {error}"


def is_bug(error: Exception) -> bool:
    """Whether nobody expected this error."""
    return not isinstance(error, OSError | PathRefusedError | MalformedError)
