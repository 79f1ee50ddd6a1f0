"""What ingest tells Prometheus. Labels come from closed sets: never an address, a mailbox or a delivery id."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From one fsync on a good disk to the longest deadline.
_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The instruments, made once per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"roost_ingest_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"roost_ingest_{name}", text, registry=registry)

        self.sessions_open = gauge("sessions_open", "LMTP sessions that are open.")
        self.sessions = counter("sessions_total", "LMTP sessions by how they began.", "result")
        self.transactions = counter("transactions_total", "Transactions that reached the end of their content.")
        self.transactions_lost = counter(
            "transactions_lost_total", "Transactions whose client went away before it had all its replies."
        )
        self.replies = counter("recipients_total", "Replies to recipients, at RCPT or after the content.", "code")
        self.senders_refused = counter("senders_refused_total", "MAIL commands refused for want of room.", "code")
        self.received_bytes = counter("received_bytes_total", "Content octets of transactions that were published.")
        self.lookups = counter("directory_lookups_total", "Answers of the directory.", "result")
        self.directory_entries = gauge("directory_entries", "Addresses that the directory knows.")
        self.directory_reloads = counter("directory_reloads_total", "Reloads of the directory's source.", "result")
        self.publishes = counter("publishes_total", "Bundles by what the broker said of them.", "result")
        self.bundle_size = Histogram(
            "roost_ingest_bundle_deliveries",
            "Deliveries in a bundle.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.resends = counter("resends_total", "Deliveries published again, by the evidence for their loss.", "cause")
        self.acknowledgements = counter(
            "acknowledgements_total", "Acknowledgements from the store; late ones found nobody waiting.", "result"
        )
        self.outcomes = counter("outcomes_total", "Outcomes for recipients, by what settled them.", "outcome")
        self.acknowledgement_seconds = Histogram(
            "roost_ingest_acknowledgement_seconds",
            "From a delivery's hand-over to the publisher until its acknowledgement.",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.in_flight = gauge("in_flight_deliveries", "Deliveries that wait for their acknowledgement.")
        self.in_flight_bytes = gauge("in_flight_bytes", "Content of the deliveries in flight.")
        self.oldest_in_flight = gauge("oldest_in_flight_seconds", "Age of the oldest delivery in flight; 0 if none.")
        self.broker_connected = gauge("broker_connected", "1 while the broker is connected and the topology declared.")
        self.broker_blocked = gauge("broker_blocked", "1 while the broker refuses publishes for an alarm of its own.")
