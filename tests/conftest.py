"""The real parts that tests of several folders use, and the marks and the order of all tests."""

import pytest
from cluster.fixtures import cluster, namespace, wire
from cluster.required import helm_binary

__all__ = ["cluster", "helm_binary", "namespace", "wire"]

_BUILT = {"cluster": "cluster", "helm_binary": "helm"}
"""The fixtures that give a part that has to be built, and the mark of the tests that use it."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what needs a part that has to be built; `make test` leaves these out."""
    for fixture, mark in _BUILT.items():
        if fixture in getattr(item, "fixturenames", ()):
            item.add_marker(mark)
