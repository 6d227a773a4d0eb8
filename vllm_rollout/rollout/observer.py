"""How a run sees a deployment: by its address, or at the release's own replicas."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.observation import Observation
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.observe.probe import probe
from vllm_rollout.platform.base import Platform
from vllm_rollout.policy import Policy
from vllm_rollout.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentObserver:
    """DeploymentObserver at deployments.

    `--base-url` names the `source`; what is promoted is always watched where its platform says.
    """

    settings: Settings
    policy: Policy
    source: Deployment

    @property
    def _platform(self) -> Platform:
        return self.settings.require_platform()

    def settings_for(self, deployment: Deployment) -> Settings:
        """The settings that say where the deployment is asked."""
        if deployment == self.source:
            return self.settings
        return replace(self.settings, base_url=None)

    def reach(self, deployment: Deployment) -> None:
        """Return if something answers at the deployment's address.

        Raises:
            UnreachableError: nothing does; it names the address.
        """
        with self._client(deployment) as client:
            client.health(timeout_seconds=self.policy.watch.probe_timeout_seconds)

    @contextmanager
    def at(self, deployment: Deployment) -> Iterator[Callable[[], Observation]]:
        """DeploymentObserver, as the watch takes them, through the deployment's address."""
        with self._client(deployment) as client:
            yield lambda: self._look(client, deployment)

    @contextmanager
    def probe_pods(self, deployment: Deployment) -> Iterator[Callable[[], Observation]]:
        """DeploymentObserver, as the watch takes them, at the release's own replicas alone."""
        url = self._platform.own_url(deployment)
        with self._client_at(url, deployment) as client:
            yield lambda: self._look(client, deployment)

    def _look(self, client: InferenceClient, deployment: Deployment) -> Observation:
        before = self._platform.path_errors(deployment)
        probes = probe(
            client,
            count=self.policy.watch.probes,
            timeout_seconds=self.policy.watch.probe_timeout_seconds,
        )
        replicas = None  # a gap: the trigger says when it is too long
        with suppress(RolloutError):
            replicas = self._platform.replicas(deployment)
        trouble = self._platform.path_errors(deployment).since(before)
        return Observation(probes=probes.unless(trouble), replicas=replicas)

    def _client(self, deployment: Deployment) -> InferenceClient:
        return self._client_at(self.settings_for(deployment).url_of(deployment), deployment)

    def _client_at(self, url: str, deployment: Deployment) -> InferenceClient:
        return InferenceClient(url, model=deployment.model, api_key=self.settings.api_key)
