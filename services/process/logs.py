"""Logs: one JSON object a line on standard output."""

from __future__ import annotations

import logging
import sys
from typing import BinaryIO

import msgspec
import structlog

# What libraries say at these levels repeats what our own lines say with a delivery id.
_LIBRARY_LEVELS = {"aiormq": logging.CRITICAL, "aio_pika": logging.CRITICAL, "uvicorn": logging.WARNING}


class LineWriter:
    """Writes log lines. Mail goes on when nobody reads them: a closed or full log costs lines, never messages."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def msg(self, line: bytes) -> None:
        """Write one line at once."""
        try:
            self._stream.write(line + b"\n")
            self._stream.flush()
        except (OSError, ValueError):
            # The lines that the stream could not take stay in its buffer; nothing better can be done with them.
            return

    debug = info = warning = error = critical = exception = msg


class _Bridge(logging.Handler):
    """Turns the records of libraries into lines like ours."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger()
        error = {"exc_info": record.exc_info} if record.exc_info else {}
        logger.log(record.levelno, "library", logger=record.name, message=record.getMessage(), **error)


def _encode(event: object, **_: object) -> bytes:
    return msgspec.json.encode(event, enc_hook=repr)


def configure(service: str, level: str, stream: BinaryIO | None = None) -> None:
    """Send this process's log lines of at least `level` to `stream` (default: standard output)."""
    numeric = logging.getLevelNamesMapping()[level.upper()]

    def name_service(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["service"] = service
        return event

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            name_service,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_encode),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=lambda *_: LineWriter(stream or sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(numeric, logging.INFO), handlers=[_Bridge()], force=True)
    for library, library_level in _LIBRARY_LEVELS.items():
        logging.getLogger(library).setLevel(library_level)
