"""What ingest's readiness depends on."""

from __future__ import annotations

from collections.abc import Mapping

from services.ingest.directory import Directory
from services.ingest.publisher import Publisher
from services.ingest.server import Server
from services.process.health import Check


def checks(server: Server, publisher: Publisher, directory: Directory) -> Mapping[str, Check]:
    """Each check by its name. An overload is no reason to be unready: then clients get 451, and other processes do too.

    A broker that blocks publishes for an alarm is one: no process of this service can work then.
    """
    return {
        "broker": Check(publisher.connected, "connected" if publisher.connected else "not connected"),
        "topology": Check(publisher.connected, "declared" if publisher.connected else "not declared"),
        "alarm": Check(not publisher.blocked, "the broker is out of memory or disk" if publisher.blocked else "none"),
        "directory": Check(*directory.status()),
        "draining": Check(not server.draining, "draining" if server.draining else "no"),
    }
