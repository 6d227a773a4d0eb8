"""Distribution of gates over the workers of pytest-xdist."""

from collections.abc import Sequence
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling


class DeploymentScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Sends all tests of one deployment to one worker, and every other test to whoever is free.

    `names` are the deployments as test ids have them, `staging-llama-2-7b`.
    """

    def __init__(self, config: pytest.Config, log: Any, *, names: Sequence[str]) -> None:
        super().__init__(config, log)
        self._names = sorted(names, key=len, reverse=True)  # one model's name may begin another's

    def _split_scope(self, nodeid: str) -> str:
        parameters = nodeid.partition("[")[2].removesuffix("]")
        for name in self._names:
            if f"-{name}-" in f"-{parameters}-":
                return name
        return nodeid
