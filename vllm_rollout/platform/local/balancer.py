"""Smooth weighted round robin between replicas: shares are exact and repeatable."""

from collections.abc import Mapping
from typing import Generic, TypeVar

Member = TypeVar("Member")


class Balancer(Generic[Member]):
    """Spreads picks over members in proportion to their weights.

    Every pick raises each member's credit by its weight and takes the sum of all weights from the
    one that had most: over any run as long as the sum, shares are exact for whole weights.
    """

    def __init__(self) -> None:
        self._weights: dict[Member, float] = {}
        self._credit: dict[Member, float] = {}

    def update(self, weights: Mapping[Member, float]) -> None:
        """Take these members from now on; the same as before changes nothing."""
        positive = {member: weight for member, weight in weights.items() if weight > 0}
        if positive != self._weights:
            self._weights = positive
            self._credit = dict.fromkeys(positive, 0.0)

    def pick(self, *, besides: Member | None = None) -> Member | None:
        """The next member (another than `besides`), or None when there is none."""
        chosen: Member | None = None
        total = 0.0
        for member, weight in self._weights.items():
            if member == besides:
                continue
            total += weight
            self._credit[member] += weight
            if chosen is None or self._credit[member] > self._credit[chosen]:
                chosen = member
        if chosen is not None:
            self._credit[chosen] -= total
        return chosen
