"""The real parts that tests of several folders use, and the marks and the order of all tests."""

import os
from typing import Any

import pytest
from cluster.fixtures import cluster, namespace, wire
from cluster.required import helm_binary
from xdist.scheduler import LoadScopeScheduling

__all__ = ["cluster", "helm_binary", "namespace", "wire"]

# Workers get 80 from xdist; what commands print is as wide as without a terminal.
os.environ.pop("COLUMNS", None)
# What the tests run is not told to the CI that they may run in.
for _system in ("GITHUB_ACTIONS", "GITLAB_CI"):
    os.environ.pop(_system, None)
# Helm is started some thousand times: more memory for less CPU time, as garbage is left longer.
os.environ.setdefault("GOGC", "400")

_BUILT = {"cluster": "cluster", "helm_binary": "helm", "registry": "registry"}
"""Fixtures that give a real part, and the mark of the tests that use it."""


_LONGEST_FIRST = (
    "tests/e2e/test_rollout_on_cluster.py",
    "tests/e2e/test_rollout",
    "tests/e2e/",
    "tests/capacity/",
    "tests/rollout/test_crashes.py",
    "tests/platform/kubernetes/test_load_on_cluster.py",
    "tests/platform/kubernetes/test_platform_on_cluster.py",
    "_on_cluster.py",
    "tests/cluster/test_existing.py",
    "tests/rollout/",
    "tests/pytest_plugin/",
    "tests/load/",
    "tests/observe/",
)
"""Parts of the names of the files whose tests take long, so that the last minutes of a run are
many short tests, which keep every core at work."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what needs a real part that may be missing; `make test` leaves these out."""
    for fixture, mark in _BUILT.items():
        if fixture in getattr(item, "fixturenames", ()):
            item.add_marker(mark)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with the longest tests first."""

    def place(item: pytest.Item) -> int:
        return next((n for n, part in enumerate(_LONGEST_FIRST) if part in item.nodeid), 99)

    items.sort(key=place)


_SITES = "tests/e2e/test_crashes_on_cluster.py"


class _Scheduling(LoadScopeScheduling):
    """Sends the tests of one site to one worker.

    In place of `--dist loadgroup`: under pytest 9.2 xdist's own groups do nothing.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(_SITES):
            return nodeid.partition("[")[2].partition("-")[0]
        return nodeid


def pytest_xdist_auto_num_workers() -> int:
    """Three workers for two cores: tests of real processes wait for nearly half of their time."""
    return max(2, (os.cpu_count() or 1) * 3 // 2)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Distribute the tests."""
    return _Scheduling(config, log)
