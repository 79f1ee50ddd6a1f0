"""The replies after a message: one per accepted recipient, in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.lmtp import LocalError, Reply
from services.ingest.lmtp.owed import OwedReplies

REPLIES = [Reply(250, "2.0.0", str(index)) for index in range(20)]


@given(st.integers(1, 20).flatmap(lambda count: st.permutations(range(count))))
def test_ready_prefix(order: list[int]) -> None:
    """In whatever order they settle, replies leave in place order, each as soon as all before it are settled."""
    owed = OwedReplies(len(order))
    left: list[Reply] = []
    settled: set[int] = set()
    for index in order:
        assert not owed.is_settled
        left += owed.settle(index, REPLIES[index])
        settled.add(index)
        ready = next(place for place in range(len(order) + 1) if place not in settled)
        assert left == REPLIES[:ready]
    assert owed.is_settled


def test_settle_all_fills_the_gaps() -> None:
    """Those that have a reply keep it, the others get the common one, and none leaves twice."""
    owed = OwedReplies(4)
    assert owed.settle(0, REPLIES[0]) == [REPLIES[0]]
    assert owed.settle(2, REPLIES[2]) == []
    assert owed.settle_all(REPLIES[9]) == [REPLIES[9], REPLIES[2], REPLIES[9]]
    assert owed.is_settled


@pytest.mark.parametrize("index", [-1, 1, 2])
def test_wrong_place_is_our_bug(index: int) -> None:
    """A place that does not exist or has its reply raises, and nothing leaves."""
    owed = OwedReplies(2)
    owed.settle(1, REPLIES[1])
    with pytest.raises(LocalError):
        owed.settle(index, REPLIES[0])
    assert owed.settle(0, REPLIES[0]) == [REPLIES[0], REPLIES[1]]
