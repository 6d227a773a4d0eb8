"""Distribution of gates over the workers of pytest-xdist."""

from collections.abc import Sequence
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.pytest_plugin.gate_selection import deployment_in_id
from vllm_rollout.settings import Settings


class DeploymentScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Sends all tests of one deployment to one worker, and every other test to whoever is free.

    What a crashed worker leaves of a deployment no other goes on with: it would send a second load.
    """

    def __init__(
        self, config: pytest.Config, log: Any, settings: Settings, models: Sequence[str]
    ) -> None:
        super().__init__(config, log)
        self._settings = settings
        self._models = models

    def remove_node(self, node: Any) -> str | None:
        """Return the test that the worker crashed in, if it did."""
        assigned = self.assigned_work[node]
        left = [test for unit in assigned.values() for test, done in unit.items() if not done]
        self.assigned_work[node] = {
            scope: unit
            for scope, unit in assigned.items()
            if not any(self._deployment(test) for test in unit)
        }
        super().remove_node(node)
        return left[0] if left else None

    def _split_scope(self, nodeid: str) -> str:
        return str(self._deployment(nodeid) or nodeid)

    def _deployment(self, nodeid: str) -> Deployment | None:
        return deployment_in_id(nodeid, self._settings, self._models)
