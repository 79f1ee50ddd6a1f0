"""What a written delivery leaves in the log and in the metrics."""

from __future__ import annotations

import structlog

from services.contract import Delivery, OutcomeKind
from services.store.metrics import Metrics
from services.store.report import DeliveryReport

log = structlog.get_logger()

_GOOD = (OutcomeKind.STORED, OutcomeKind.DUPLICATE)


def account(delivery: Delivery, report: DeliveryReport, seconds: float, metrics: Metrics) -> None:
    """One line for each recipient. `seconds` is how long the batch of this delivery took."""
    metrics.written_bytes.inc(report.bytes_written)
    for fsync_s in report.fsync_s:
        metrics.fsync_seconds.observe(fsync_s)
    failures = {failure.position: failure for failure in report.failures}
    for position, (recipient, outcome) in enumerate(zip(delivery.recipients, report.outcomes, strict=True)):
        metrics.deliveries.labels(outcome.kind, outcome.reason).inc()
        line = {
            "delivery": delivery.id,
            "sender": delivery.sender,
            "recipient": recipient.address,
            "mailbox": recipient.mailbox,
            "outcome": outcome.kind,
            "message_id": delivery.message_id,
            "bytes": len(delivery.content),
            "seconds": round(seconds, 6),
        }
        failure = failures.get(position)
        if failure is not None:
            log.error(
                "not stored",
                **line,
                reason=outcome.reason,
                step=failure.step,
                path=failure.path,
                error=failure.text,
                exc_info=failure.bug,
            )
        elif outcome.kind in _GOOD:
            log.info(outcome.kind, **line, file=outcome.file)
        else:
            log.warning("not stored", **line, reason=outcome.reason)
