"""Rollouts that ask no server: what they see of a deployment is the test's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.observation import Observation
from vllm_rollout.rollout.observer import DeploymentObserver


@contextmanager
def scripted_observer(
    see: Callable[[DeploymentObserver, Deployment], Observation],
) -> Iterator[None]:
    """Each look, by the address or at the release's own replicas, is what `see` says then."""

    @contextmanager
    def looks(
        self: DeploymentObserver, deployment: Deployment
    ) -> Iterator[Callable[[], Observation]]:
        yield lambda: see(self, deployment)

    with (
        patch.object(DeploymentObserver, "at", looks),
        patch.object(DeploymentObserver, "probe_pods", looks),
        patch.object(DeploymentObserver, "reach", lambda *_: None),
        patch.object(DeploymentObserver, "reach_metrics", lambda *_: []),
        patch.object(DeploymentObserver, "refusal_at_users_address", lambda *_: None),
    ):
        yield
