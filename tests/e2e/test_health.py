"""The health endpoints of both services while they work."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.e2e.conftest import Site
from tests.support.letters import SENDER, letter
from tests.support.services import Service


@pytest.fixture(params=["ingest", "store"])
def service(request: pytest.FixtureRequest, site: Site) -> Service:
    """Each service, after some mail has passed."""
    queue_id = site.postfix.submit(SENDER, site.stack.new_users(2), letter(1))
    site.postfix.wait_removed({queue_id})
    chosen: Service = getattr(site.stack, request.param)
    return chosen


def test_every_check_says_yes(service: Service) -> None:
    """/readyz names its checks, broker and topology among them, and each is fulfilled."""
    checks = service.readiness()
    assert {"broker", "topology", "draining"} <= checks.keys()
    assert all(checks.values()), checks
    assert service.page("/livez")[0] == 200


def test_the_metrics_pass_promtool(service: Service) -> None:
    """`promtool check metrics` finds nothing to complain about: names, units, help texts."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    page = service.page("/metrics")[1]
    check = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False, timeout=30
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, "")


def test_no_label_holds_what_a_client_chose(service: Service, site: Site) -> None:
    """No metric names an address, so that their number is bounded whatever clients do."""
    queue_id = site.postfix.submit(SENDER, ["nobody-at-all@brokkr.net", site.stack.new_user()], letter(1))
    site.postfix.wait_removed({queue_id})
    page = service.page("/metrics")[1]
    assert "@" not in page
    assert "nobody-at-all" not in page
