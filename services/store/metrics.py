"""What the store tells Prometheus. Labels come from closed sets: never an address, a mailbox or a delivery id."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The instruments, made once per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"roost_store_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"roost_store_{name}", text, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"roost_store_{name}", text, buckets=buckets, registry=registry)

        self.deliveries = counter("recipients_total", "Outcomes for recipients.", "outcome", "reason")
        self.bundles = counter("bundles_total", "Bundles from the queue.", "result")
        self.given_back = counter("deliveries_given_back_total", "Deliveries given back to the queue by a drain.")
        self.consumer_cancelled = counter("consumer_cancelled_total", "Times that the broker ended the consumption.")
        self.batch_size = histogram("batch_deliveries", "Deliveries in a batch.", (1, 2, 4, 8, 16, 32, 64, 128, 256))
        self.batch_seconds = histogram("batch_seconds", "Time for a batch, from its start to its outcomes.")
        self.fsync_seconds = histogram("fsync_seconds", "Time that one fsync took.")
        self.queue_wait_seconds = histogram(
            "queue_wait_seconds", "From a bundle's publish, by ingest's clock, until the store began it."
        )
        self.written_bytes = counter("written_bytes_total", "Bytes written into files that are stored.")
        self.overdue_batches = counter("overdue_batches_total", "Batches that took longer than the store's budget.")
        self.in_progress = gauge("deliveries_in_progress", "Deliveries taken from the queue and not settled.")
        self.free_bytes = gauge("mail_root_free_bytes", "Free space below the mail root.")
        self.broker_connected = gauge("broker_connected", "1 while both connections to the broker are up.")
