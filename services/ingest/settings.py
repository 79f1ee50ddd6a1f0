"""Ingest's settings: each is the environment variable ROOST_<NAME>."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pydantic

from services.broker import BrokerSettings
from services.contract import size_bound
from services.process.settings import Endpoint, parse_endpoint, parse_endpoints


class IngestSettings(BrokerSettings):
    """What ingest can be told."""

    lmtp: str = pydantic.Field(
        "127.0.0.1:2424", description="Where LMTP is served: host:port or unix:/path; several, separated by commas."
    )
    ingest_http: str = pydantic.Field("127.0.0.1:8081", description="Where health and metrics are served: host:port.")
    recipients: Path = pydantic.Field(
        Path("deploy/local/recipients"),
        description="Who has a mailbox: a text file in the form of Postfix's virtual_mailbox_maps.",
    )
    shards: int = pydantic.Field(
        1, ge=1, le=1024, description="Mailboxes are spread over so many stores, by a hash of their path."
    )
    max_content_bytes: int = pydantic.Field(
        50 * 1024 * 1024, ge=64 * 1024, description="The largest message that is taken (SIZE)."
    )
    max_recipients: int = pydantic.Field(1000, ge=100, description="Recipients of one transaction.")
    max_sessions: int = pydantic.Field(1000, gt=0, description="LMTP sessions at a time.")
    max_in_flight: int = pydantic.Field(10_000, gt=0, description="Deliveries that wait for a store at a time.")
    max_in_flight_bytes: int = pydantic.Field(512 * 1024 * 1024, gt=0, description="Their contents together.")
    amqp_max_message_bytes: int = pydantic.Field(
        128 * 1024 * 1024, gt=0, description="The broker's max_message_size; it must have room for the largest message."
    )
    idle_timeout_s: float = pydantic.Field(
        300.0, gt=0, description="How long a client may be silent between commands, or while it sends content."
    )
    reply_timeout_s: float = pydantic.Field(60.0, gt=0, description="How long a client may take to read its replies.")
    drain_timeout_s: float = pydantic.Field(
        75.0, gt=0, description="How long sessions may take to finish their transactions after SIGTERM."
    )

    @pydantic.field_validator("lmtp")
    @classmethod
    def _check_lmtp(cls, value: str) -> str:
        parse_endpoints(value)
        return value

    @pydantic.field_validator("ingest_http")
    @classmethod
    def _check_http(cls, value: str) -> str:
        if parse_endpoint(value).path:
            raise ValueError("must be host:port")
        return value

    @pydantic.model_validator(mode="after")
    def _check_sizes(self) -> Self:
        largest = size_bound(self.max_content_bytes, self.max_recipients)
        if largest > self.amqp_max_message_bytes:
            raise ValueError(
                f"ROOST_MAX_CONTENT_BYTES={self.max_content_bytes} with ROOST_MAX_RECIPIENTS={self.max_recipients} "
                f"makes messages of up to {largest} bytes, "
                f"above ROOST_AMQP_MAX_MESSAGE_BYTES={self.amqp_max_message_bytes}"
            )
        return self

    @property
    def lmtp_endpoints(self) -> tuple[Endpoint, ...]:
        """Where LMTP is served."""
        return parse_endpoints(self.lmtp)

    @property
    def http_endpoint(self) -> Endpoint:
        """Where health and metrics are served."""
        return parse_endpoint(self.ingest_http)
