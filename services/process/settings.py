"""Settings: one frozen object per process, read once from the environment.

Every setting is an environment variable `ROOST_<FIELD>`. Variables with other names are left alone, since a container
platform adds its own. Nothing but `load` reads the environment.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn, TypeVar

import msgspec
import pydantic
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "ROOST_"


class Endpoint(msgspec.Struct, frozen=True):
    """Where to listen: a TCP address, or a Unix socket if `path` is set."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """As it is written in a setting."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """`host:port`, `[ipv6]:port`, `:port` (all addresses) or `unix:/path`. Raises ValueError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise ValueError("a path is missing after unix:")
        return Endpoint(path=path)
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004 - 16 bits
        raise ValueError(f"{text!r} is neither host:port nor unix:/path")
    return Endpoint(host=host.strip("[]"), port=int(port))


def parse_endpoints(text: str) -> tuple[Endpoint, ...]:
    """Endpoints separated by commas. Raises ValueError."""
    return tuple(parse_endpoint(part.strip()) for part in text.split(","))


class ProcessSettings(BaseSettings):
    """What every Roost process can be told."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    log_level: str = pydantic.Field(
        "info", pattern="^(debug|info|warning|error)$", description="The least severe log lines that are written."
    )
    hostname: str = pydantic.Field(
        default_factory=lambda: os.uname().nodename,
        min_length=1,
        max_length=255,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="This host's name, in greetings, trace lines and file names. Default: the system's.",
    )


_Settings = TypeVar("_Settings", bound=ProcessSettings)

# sysexits(3), EX_CONFIG: a supervisor's log then tells a wrong setting from a crash.
EX_CONFIG = 78


def load(kind: type[_Settings]) -> _Settings:
    """The settings of this process. Ends it with status 78 and one line that names what is wrong."""
    try:
        return kind()
    except pydantic.ValidationError as error:
        refuse("; ".join(_explain(kind, problem) for problem in error.errors(include_url=False)))


def _explain(kind: type[ProcessSettings], problem: object) -> str:
    """One problem that pydantic found, in terms of the environment variable."""
    assert isinstance(problem, dict)  # noqa: S101 - pydantic's ErrorDetails
    message = str(problem["msg"]).removeprefix("Value error, ")
    field = str(problem["loc"][0]) if problem["loc"] else ""
    if field not in kind.model_fields:
        return message
    return f"{PREFIX}{field.upper()}={problem['input']}: {message}"


def refuse(message: str) -> NoReturn:
    """End the start of this process: its settings cannot work."""
    sys.stderr.write(f"roost: {' '.join(message.split())}\n")
    raise SystemExit(EX_CONFIG)
