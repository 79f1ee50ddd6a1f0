"""The lock files beside pyproject.toml; `deploy/lock` writes them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["local"]]
LOCKS = {"requirements.lock": RUNTIME, "requirements-dev.lock": [*RUNTIME, *PROJECT["dependency-groups"]["dev"]]}

ENTRY = re.compile(r"^(?P<name>[a-z0-9.-]+)==(?P<version>\S+)(?P<rest>.*(?:\n[ ]{4}.*)*)", re.MULTILINE)


def entries(lock: str) -> dict[str, re.Match[str]]:
    return {entry["name"]: entry for entry in ENTRY.finditer((ROOT / lock).read_text())}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_answers_exactly_what_the_project_asks_for(lock: str) -> None:
    """Each dependency in pyproject.toml is locked to a version that it allows, and no dropped one is asked for."""
    locked = entries(lock)
    wanted = {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, LOCKS[lock])}
    asked_for = {name for name, entry in locked.items() if "roost (pyproject.toml" in entry["rest"]}
    assert asked_for == set(wanted)
    assert not [name for name in wanted if not wanted[name].specifier.contains(locked[name]["version"])]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_version_has_hashes(lock: str) -> None:
    """A file that was exchanged on its way can be refused."""
    assert not [name for name, entry in entries(lock).items() if "--hash=sha256:" not in entry["rest"]]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_place(lock: str) -> None:
    """Neither an index, nor a host, nor a folder of the machine that wrote the lock stands in it."""
    assert not re.findall(r"^-.*|\S+://\S+|file:\S+|\s/\S+", (ROOT / lock).read_text(), re.MULTILINE)


def test_tests_run_with_the_versions_that_are_deployed() -> None:
    """The tests' lock holds everything that is deployed, in the same version."""
    deployed, tested = ({name: entry["version"] for name, entry in entries(lock).items()} for lock in LOCKS)
    assert deployed.items() <= tested.items()
