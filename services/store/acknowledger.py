"""Publishes acknowledgements, on a connection of their own, and knows when the broker has them.

Knows AMQP and the contract; knows no queue of work and no file.
"""

from __future__ import annotations

import asyncio
from typing import Final

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection, AbstractExchange

from services.broker import keep_connected, lost_peer
from services.contract import ACKNOWLEDGEMENTS_TYPE, Acknowledgements, encode
from services.store.settings import StoreSettings

log = structlog.get_logger()

# Between a failure to publish and the notice that the connection is gone.
_PAUSE_S: Final = 0.05


class Acknowledger:
    """Owns the connection that publishes. `run` must be running."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._exchange: AbstractExchange | None = None
        self._connected = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether acknowledgements can be published."""
        return self._connected.is_set()

    async def run(self) -> None:
        """Stay connected, until cancelled."""
        await keep_connected(self._settings, f"store {self._settings.shard} acknowledgements", self._serve)

    async def _serve(self, connection: AbstractConnection) -> None:
        channel = await connection.channel()
        self._exchange = channel.default_exchange
        self._connected.set()
        try:
            await channel.closed()
        finally:
            self._connected.clear()

    async def publish(self, reply_to: str, acknowledgements: Acknowledgements) -> None:
        """Send acknowledgements to the queue of an ingest, again and again until the broker has confirmed them.

        A queue that is gone, as its ingest is, counts as confirmed: nobody waits any more. The caller bounds the time.
        """
        message = aio_pika.Message(
            encode(acknowledgements),
            type=ACKNOWLEDGEMENTS_TYPE,
            delivery_mode=aio_pika.DeliveryMode.NOT_PERSISTENT,
        )
        while True:
            await self._connected.wait()
            assert self._exchange is not None  # noqa: S101 - set before the event
            try:
                await self._exchange.publish(message, routing_key=reply_to, mandatory=False)
            except BaseException as error:
                if not lost_peer(error):
                    raise
                # A new attempt needs a new id (AMQP.md, 1); without one the library makes it.
                message.message_id = None
                await asyncio.sleep(_PAUSE_S)
            else:
                return
