"""The store as a process: makes the objects and connects them."""

from __future__ import annotations

import asyncio
import sys

import structlog

from services.process import lifecycle, logs
from services.process.health import HealthServer, make_app, make_registry
from services.process.settings import load
from services.store.acknowledger import Acknowledger
from services.store.consumer import Consumer
from services.store.delivery import Deliverer
from services.store.health import RootWatch, checks
from services.store.maildir import MailRoot
from services.store.metrics import Metrics
from services.store.settings import StoreSettings

log = structlog.get_logger()


async def serve(settings: StoreSettings, stopping: asyncio.Event) -> None:
    """Deliver until told to stop; then drain. Raises StartError if an address cannot be listened at."""
    registry = make_registry("store")
    metrics = Metrics(registry)
    root = MailRoot(settings.mail_root)
    deliverer = Deliverer(root, hostname=settings.hostname)
    acknowledger = Acknowledger(settings)
    consumer = Consumer(settings, deliverer.deliver, acknowledger, metrics)
    watch = RootWatch(root, settings.min_free_bytes, metrics)
    app = make_app("store", lambda: checks(consumer, acknowledger, watch), registry)
    with lifecycle.naming("ROOST_STORE_HTTP"):
        health = HealthServer(app, settings.http_endpoint)
    async with lifecycle.running(consumer.run(), acknowledger.run(), watch.run(), health.run_until_stopped()):
        log.info("started", hostname=settings.hostname, shard=settings.shard, mail_root=str(settings.mail_root))
        await stopping.wait()
        if not await consumer.drain(settings.store_budget_s * 2):
            lifecycle.end_at_once("the disk does not answer")
        health.stop()
    log.info("stopped")


def main() -> int:
    """Returns the exit status."""
    settings = load(StoreSettings)
    if "--check" in sys.argv[1:]:
        return 0
    logs.configure("store", settings.log_level)
    return lifecycle.run(lambda stopping: serve(settings, stopping))


if __name__ == "__main__":
    sys.exit(main())
