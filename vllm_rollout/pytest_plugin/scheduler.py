"""Distribution of gates over the workers of pytest-xdist."""

from collections.abc import Sequence
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from vllm_rollout.pytest_plugin.gate_selection import deployment_in_id
from vllm_rollout.settings import Settings


class DeploymentScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Sends all tests of one deployment to one worker, and every other test to whoever is free."""

    def __init__(
        self, config: pytest.Config, log: Any, settings: Settings, models: Sequence[str]
    ) -> None:
        super().__init__(config, log)
        self._settings = settings
        self._models = models

    def _split_scope(self, nodeid: str) -> str:
        return str(deployment_in_id(nodeid, self._settings, self._models) or nodeid)
