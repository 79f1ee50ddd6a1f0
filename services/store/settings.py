"""The store's settings: each is the environment variable ROOST_<NAME>."""

from __future__ import annotations

from pathlib import Path

import pydantic

from services.broker import BrokerSettings
from services.contract import DEFAULT_SHARD
from services.process.settings import Endpoint, parse_endpoint


class StoreSettings(BrokerSettings):
    """What the store can be told."""

    store_http: str = pydantic.Field("127.0.0.1:8082", description="Where health and metrics are served: host:port.")
    mail_root: Path = pydantic.Field(
        Path("var/mail"), description="The directory that holds this shard's maildirs. It must exist."
    )
    shard: str = pydantic.Field(
        DEFAULT_SHARD, pattern="^[0-9]{1,4}$", description="Which shard this store serves: a number from 0."
    )
    prefetch: int = pydantic.Field(
        32, ge=1, le=10_000, description="Bundles that the store takes from the queue before it has settled them."
    )
    min_free_bytes: int = pydantic.Field(
        64 * 1024 * 1024, ge=0, description="With less free space than this below the mail root, /readyz says no."
    )

    @pydantic.field_validator("store_http")
    @classmethod
    def _check_http(cls, value: str) -> str:
        if parse_endpoint(value).path:
            raise ValueError("must be host:port")
        return value

    @property
    def http_endpoint(self) -> Endpoint:
        """Where health and metrics are served."""
        return parse_endpoint(self.store_http)
