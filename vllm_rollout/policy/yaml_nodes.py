"""Policy source as a tree of values with their places.

Trees are merged before anything is validated; an error in a merged value can then name the very
file, line and column it came from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Place:
    """Place where a value was written.

    `source` is a file's name or an option; `line` and `column` count from 1 and are 0 for an
    option. `rank` grows from the defaults to the options: the greater one was written over the
    other.
    """

    source: str
    line: int = 0
    column: int = 0
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Node:
    """One value: a scalar, a dict or a list of nodes.

    `place` is where the value begins, `key_place` where its key does, and `key` the dotted key it
    was written under (before inheritance moved it). A mapping that is `off` keeps what is in it,
    so that a later block of the same name needs to say only what differs.
    """

    value: "Scalar | dict[str, Node] | list[Node]"
    place: Place
    key_place: Place
    key: str
    off: bool = False

    @property
    def children(self) -> "dict[str, Node]":
        """The mapping's nodes; empty when it is none, or is off."""
        return self.value if isinstance(self.value, dict) and not self.off else {}


def merge(under: Node | None, over: Node | None) -> Node | None:
    """`over` written over `under`: mappings key by key, everything else (lists too) replaced.

    `off` (or null) over a mapping switches it off; `on`, or a mapping over one that is off, brings
    it back.
    """
    if under is None or over is None:
        return over or under
    if isinstance(under.value, dict):
        if over.value is None or isinstance(over.value, bool):
            return replace(over, value=under.value, off=not over.value)
        if isinstance(over.value, dict):
            merged = dict(under.value)
            for key, child in over.value.items():
                joined = merge(merged.get(key), child)
                if joined is not None:
                    merged[key] = joined
            return replace(over, value=merged)
    return over


def plain(node: Node) -> Any:
    """The bare value, for validation; a mapping that is off is False."""
    if node.off:
        return False
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def with_children(node: Node, children: Mapping[str, Node | None]) -> Node:
    """The mapping with these children put in, or taken out where None."""
    kept = {**node.children, **children}
    return replace(node, value={key: child for key, child in kept.items() if child is not None})


def descend(node: Node, steps: tuple[str | int, ...]) -> tuple[Node, tuple[str | int, ...]]:
    """The deepest node along `steps`, and the steps that lead no further."""
    for index, step in enumerate(steps):
        inner = _child(node, step)
        if inner is None:
            return node, steps[index:]
        node = inner
    return node, ()


def _child(node: Node, step: str | int) -> Node | None:
    if isinstance(step, str):
        return node.children.get(step)
    if isinstance(node.value, list) and step < len(node.value):
        return node.value[step]
    return None


def dotted(key: str, step: str | int) -> str:
    """`key` with one more step: `ramp` and 1 make `ramp[1]`, `gates` and `pods` `gates.pods`."""
    if isinstance(step, int):
        return f"{key}[{step}]"
    return f"{key}.{step}" if key else step
