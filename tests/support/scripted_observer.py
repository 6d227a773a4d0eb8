"""Rollouts that ask no server: what they see of a deployment is the test's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

from vllm_rollout.judge.rollback_triggers import Sight
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.rollout.observer import Looks


@contextmanager
def scripted_looks(see: Callable[[Looks, Deployment], Sight]) -> Iterator[None]:
    """Each look, by the address or at the release's own replicas, is what `see` says then."""

    @contextmanager
    def looks(self: Looks, deployment: Deployment) -> Iterator[Callable[[], Sight]]:
        yield lambda: see(self, deployment)

    with (
        patch.object(Looks, "at", looks),
        patch.object(Looks, "at_own", looks),
        patch.object(Looks, "reach", lambda *_: None),
    ):
        yield
