"""What the store's readiness depends on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from services.process.health import Check
from services.store.acknowledger import Acknowledger
from services.store.consumer import Consumer
from services.store.maildir import MailRoot
from services.store.metrics import Metrics

_LOOK_S: Final = 2.0


class RootWatch:
    """Looks at the mail root from time to time, in a thread: a volume that hangs must not stop the health endpoints."""

    def __init__(self, root: MailRoot, min_free_bytes: int, metrics: Metrics) -> None:
        self._root = root
        self._min_free_bytes = min_free_bytes
        self._metrics = metrics
        self.writable = Check(ok=False, detail="not looked at yet")
        self.space = Check(ok=False, detail="not looked at yet")

    async def run(self) -> None:
        """Keep the checks current, until cancelled."""
        while True:
            looking = asyncio.create_task(asyncio.to_thread(self._look))
            done, _ = await asyncio.wait({looking}, timeout=_LOOK_S * 2)
            if not done:
                self.writable = Check(ok=False, detail="the volume does not answer")
            await looking
            await asyncio.sleep(_LOOK_S)

    def _look(self) -> None:
        try:
            free = self._root.free_bytes()
        except OSError as error:
            self.writable = Check(ok=False, detail=error.strerror or str(error))
            self.space = Check(ok=False, detail="unknown")
            self._metrics.free_bytes.set(0)
        else:
            self.writable = Check(ok=True, detail="writable")
            self.space = Check(free >= self._min_free_bytes, f"{free} bytes free")
            self._metrics.free_bytes.set(free)


def checks(consumer: Consumer, acknowledger: Acknowledger, watch: RootWatch) -> Mapping[str, Check]:
    """Each check by its name."""
    connected = consumer.connected and acknowledger.connected
    return {
        "broker": Check(connected, "connected" if connected else "not connected"),
        "topology": Check(consumer.connected, "declared" if consumer.connected else "not declared"),
        "mail_root": watch.writable,
        "free_space": watch.space,
        "disk": Check(not consumer.overdue, "a batch is overdue" if consumer.overdue else "answers in time"),
        "draining": Check(not consumer.draining, "draining" if consumer.draining else "no"),
    }
