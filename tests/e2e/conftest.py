"""Stacks for the e2e tests: one that many tests share, and new ones for those that break something."""

from __future__ import annotations

import contextlib
import itertools
import json
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.broker import Broker
from tests.support.dovecot import Dovecot
from tests.support.folders import shared_folder
from tests.support.log_tails import pytest_runtest_makereport
from tests.support.postfix import Postfix
from tests.support.stack import Stack

__all__ = ["pytest_runtest_makereport"]

_LOT = 12


class Site(NamedTuple):
    """A running stack between its peers."""

    stack: Stack
    postfix: Postfix
    dovecot: Dovecot


@pytest.fixture(scope="session")
def amqp_urls(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URLs of empty virtual hosts of the shared broker; each stack takes one, for queues of its own."""
    return (
        f"{broker.url}{host}"
        for lot in itertools.count()
        for host in _make_virtual_hosts(broker, tmp_path_factory.mktemp("virtual-hosts"), lot)
    )


def _make_virtual_hosts(broker: Broker, folder: Path, lot: int) -> list[str]:
    """A lot of new virtual hosts at a time, since each call takes almost a second."""
    hosts = [f"lot{lot}-{number}" for number in range(_LOT)]
    user = urllib.parse.urlsplit(broker.url).username
    rights = {"user": user, "configure": ".*", "write": ".*", "read": ".*"}
    definitions = {
        "vhosts": [{"name": host} for host in hosts],
        "permissions": [{"vhost": host, **rights} for host in hosts],
    }
    file = folder / "definitions.json"
    file.write_text(json.dumps(definitions))
    broker.rabbitmqctl("import_definitions", str(file))
    return hosts


@pytest.fixture(scope="session")
def shared_site(amqp_urls: Iterator[str]) -> Iterator[Site]:
    """A stack for all tests; take it as `site`."""
    with contextlib.ExitStack() as cleanup:
        stack = Stack(cleanup.enter_context(shared_folder("site")), next(amqp_urls))
        cleanup.callback(stack.stop)
        stack.start()
        yield Site(stack, stack.postfix(), stack.dovecot())


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """The stack that those tests share which break nothing: each takes users of its own (`stack.new_users`).

    A test fails if Postfix or Dovecot warned, or ingest logged an error, while it ran.
    """
    sources = [shared_site.postfix.log, shared_site.dovecot, shared_site.stack.ingest.log]
    known = [len(source.complaints()) for source in sources]
    yield shared_site
    assert [source.complaints()[count:] for source, count in zip(sources, known, strict=True)] == [[], [], []]


@pytest.fixture
def new_stack(amqp_urls: Iterator[str]) -> Iterator[Callable[..., Stack]]:
    """Starts a stack of the test's own: `new_stack(ROOST_QUEUE_TTL_S=2)`, `new_stack(mail_root=path)`."""
    with contextlib.ExitStack() as cleanup:

        def start(*, mail_root: Path | None = None, amqp_url: str = "", **settings: object) -> Stack:
            folder = cleanup.enter_context(shared_folder("stack"))
            stack = Stack(folder, amqp_url or next(amqp_urls), mail_root=mail_root, settings=settings)
            cleanup.callback(stack.stop)
            return stack.start()

        yield start
