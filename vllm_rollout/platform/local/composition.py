"""Composition of a release by builds and replicas, and the next ramp step's."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Replicas of one build. `revision` is where its values are found.

    `weight` is the part's share of the traffic against the other part's; by default its replicas.
    """

    build: str
    revision: int
    replicas: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """Composition of a revision: `head`, its build, and during a ramp `base`, the build before."""

    head: Part
    base: Part | None = None
    capacity: int

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts there are, newest first."""
        return (self.head,) if self.base is None else (self.head, self.base)

    @property
    def complete(self) -> bool:
        """True if every replica runs the head's build."""
        return self.head.replicas >= self.capacity

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Composition":
        """The composition that `to_json` wrote."""
        base = value["base"]
        return cls(
            head=Part(**value["head"]),
            base=None if base is None else Part(**base),
            capacity=value["capacity"],
        )


def compose(
    build: str, revision: int, *, replicas: int, capacity: int, before: Composition | None
) -> Composition:
    """`replicas` of `capacity` on `build`; the rest on what wholly served before.

    The rest runs the build from which an unfinished ramp set out, so a second build that was
    half way is dropped and never becomes the base. Where the rest already runs `build`, all
    of the capacity does. A first install has nothing to keep: only its `replicas` run.
    """
    head = Part(build=build, revision=revision, replicas=replicas, weight=replicas)
    rest = capacity - replicas
    if before is None or rest == 0:
        return Composition(head=head, capacity=capacity)
    stable = before.base or before.head
    if stable.build != build:
        base = replace(stable, replicas=rest, weight=rest)
        return Composition(head=head, base=base, capacity=capacity)
    if before.base is not None or before.complete:
        head = replace(head, replicas=capacity, weight=capacity)
    return Composition(head=head, capacity=capacity)
