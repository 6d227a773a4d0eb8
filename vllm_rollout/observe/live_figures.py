"""Figures of deployments as they run, from what is there to be asked."""

from datetime import datetime, timedelta

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.live_figures import SideFigures
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import Policy


class LiveFigures:
    """Reads the figures of deployments. Close it in the end, or use it as a context manager."""

    def __init__(self, policy: Policy, platform: ReleaseReader) -> None:
        self._policy, self._platform = policy, platform

    def read(self, deployment: Deployment, *, window: timedelta, now: datetime) -> list[SideFigures]:
        """Return the figures of each side of the deployment; none where there is no release."""
        raise NotImplementedError
