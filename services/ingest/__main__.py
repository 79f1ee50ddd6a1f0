"""Ingest as a process: makes the objects and connects them."""

from __future__ import annotations

import asyncio
import sys

import structlog

from services.ingest.directory.map_file import MapFile
from services.ingest.health import checks
from services.ingest.intake import Intake
from services.ingest.metrics import Metrics
from services.ingest.publisher import Publisher
from services.ingest.server import Server
from services.ingest.settings import IngestSettings
from services.process import lifecycle, logs
from services.process.health import HealthServer, make_app, make_registry
from services.process.settings import load

log = structlog.get_logger()


async def serve(settings: IngestSettings, stopping: asyncio.Event) -> None:
    """Serve LMTP until told to stop; then drain. Raises StartError if an address cannot be listened at."""
    registry = make_registry("ingest")
    metrics = Metrics(registry)
    directory = MapFile(settings.recipients, metrics)
    shards = [str(number) for number in range(settings.shards)]
    publisher = Publisher(
        settings,
        metrics,
        shards=shards,
        max_in_flight=settings.max_in_flight,
        max_in_flight_bytes=settings.max_in_flight_bytes,
    )
    intake = Intake(directory, publisher, metrics, hostname=settings.hostname, shards=settings.shards)
    server = Server(settings, intake, metrics)
    app = make_app("ingest", lambda: checks(server, publisher, directory), registry)
    with lifecycle.naming("ROOST_INGEST_HTTP"):
        health = HealthServer(app, settings.http_endpoint)
    with lifecycle.naming("ROOST_LMTP"):
        await server.listen()
    async with lifecycle.running(publisher.run(), directory.run(), server.run(), health.run_until_stopped()):
        log.info("started", hostname=settings.hostname, shards=settings.shards)
        await stopping.wait()
        await server.drain()
        health.stop()
    log.info("stopped")


def main() -> int:
    """Returns the exit status."""
    settings = load(IngestSettings)
    if "--check" in sys.argv[1:]:
        return 0
    logs.configure("ingest", settings.log_level)
    return lifecycle.run(lambda stopping: serve(settings, stopping))


if __name__ == "__main__":
    sys.exit(main())
