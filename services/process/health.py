"""The health endpoints: /livez, /readyz, /metrics and /version, served by uvicorn in the service's own loop.

Liveness says that the loop turns and nothing else: a broker's outage must not restart healthy processes. Readiness says
whether this process can do its job now, and which check says no.
"""

from __future__ import annotations

import contextlib
import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata

import msgspec
import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from services.process.settings import Endpoint


class Check(msgspec.Struct, frozen=True):
    """One thing that readiness depends on. `detail` is for people."""

    ok: bool
    detail: str = ""


Checks = Callable[[], Mapping[str, Check]]


def version() -> str:
    """The version of Roost that is running, or "unknown" where it runs from a checkout."""
    try:
        return metadata.version("roost")
    except metadata.PackageNotFoundError:
        return "0.1.0"


def make_registry(service: str) -> CollectorRegistry:
    """A registry with what every service reports of itself."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    build = Gauge("roost_build_info", "Always 1; the labels tell what runs.", ["service", "version"], registry=registry)
    build.labels(service, version()).set(1)
    return registry


def make_app(service: str, checks: Checks, registry: CollectorRegistry) -> FastAPI:
    """The endpoints over `checks`, which must answer at once and never block."""
    app = FastAPI(title=f"roost {service}", openapi_url=None)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        results = checks()
        ready = all(check.ok for check in results.values())
        page = {"status": "ok" if ready else "unavailable", "checks": results}
        return Response(msgspec.json.encode(page), 200 if ready else 503, media_type="application/json")

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/version")
    async def version_() -> dict[str, str]:
        return {"service": service, "version": version(), "python": platform.python_version()}

    return app


class HealthServer(uvicorn.Server):
    """Serves the endpoints on a socket that is bound before anything else starts, so that a taken port ends the start.

    The process, not uvicorn, owns the signals.
    """

    def __init__(self, app: FastAPI, endpoint: Endpoint) -> None:
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=5))
        self._socket = bind(endpoint)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def run_until_stopped(self) -> None:
        """Serve until `stop` is called."""
        await self.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Finish the requests under way and return from `run_until_stopped`."""
        self.should_exit = True


def bind(endpoint: Endpoint) -> socket.socket:
    """A listening TCP socket. Raises OSError with the address in its text."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((endpoint.host, endpoint.port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(f"cannot listen on {endpoint}: {getattr(error, 'strerror', None) or error}") from error
    return listener
