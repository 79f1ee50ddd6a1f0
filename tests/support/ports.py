"""Free TCP ports on loopback for private peers."""

from __future__ import annotations

import random
import socket

# Below Linux' ephemeral range: no outgoing connection takes the port between the choice and the peer's bind.
_RANGE = range(12000, 32000)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now; chosen at random, so that parallel runs seldom meet."""
    for port in random.sample(_RANGE, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port on 127.0.0.1")
