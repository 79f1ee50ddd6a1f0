"""The replies that a message's recipients are owed.

RFC 2033 4.2: one reply per accepted RCPT, in the order of the RCPTs, even for a repeated address. Merging two would put
every later reply on the wrong recipient.
"""

from __future__ import annotations

from services.ingest.lmtp.errors import LocalError
from services.ingest.lmtp.reply import Reply


class OwedReplies:
    """One place for each accepted recipient; replies may come in any order and leave in the order of the places."""

    __slots__ = ("_left", "_places")

    def __init__(self, count: int) -> None:
        self._places: list[Reply | None] = [None] * count
        self._left = 0

    @property
    def is_settled(self) -> bool:
        """True once every reply has left."""
        return self._left == len(self._places)

    def settle(self, index: int, reply: Reply) -> list[Reply]:
        """The replies that may leave now. Raises LocalError if there is no such place, or it has its reply."""
        if not 0 <= index < len(self._places) or self._places[index] is not None:
            raise LocalError(f"recipient {index} of {len(self._places)} is owed no reply")
        self._places[index] = reply
        return self._ready()

    def settle_all(self, reply: Reply) -> list[Reply]:
        """Give `reply` to each that has none yet; returns all that have not left, in order."""
        self._places = [place or reply for place in self._places]
        return self._ready()

    def _ready(self) -> list[Reply]:
        ready: list[Reply] = []
        for place in self._places[self._left :]:
            if place is None:
                break
            ready.append(place)
        self._left += len(ready)
        return ready
