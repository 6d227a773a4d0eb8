"""Read access to a platform: gates, reports and `status` hold a reader and change nothing."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vllm_rollout.model.deployment import Build, Deployment, Replica, Revision
from vllm_rollout.model.live_figures import Usage
from vllm_rollout.model.preflight_facts import Preflight
from vllm_rollout.model.symptoms import Symptoms
from vllm_rollout.platform.base import Entry, LiveObjects, PathErrors, Route, Weights


class StoreReader(Protocol):
    """Small JSON documents that survive the process and the job."""

    def read(self, key: str) -> Entry | None:
        """Return the entry, or None."""

    def keys(self, prefix: str) -> list[str]:
        """Return all keys that begin with `prefix`, sorted."""


class EnvironmentHomes:
    """A platform whose environments have stores of their own."""

    def at_home(self, environment: str) -> "ReleaseReader":
        """The same platform, whose store is that of `environment`."""
        raise NotImplementedError


def at_home(platform: "ReleaseReader", environment: str) -> "ReleaseReader":
    """`platform` with the store that `environment` has; most have one for all."""
    return platform.at_home(environment) if isinstance(platform, EnvironmentHomes) else platform


def homes(platform: "ReleaseReader", environments: Sequence[str]) -> "list[ReleaseReader]":
    """`platform` with each store that `environments` have; itself where they have one."""
    if not isinstance(platform, EnvironmentHomes):
        return [platform]
    return [platform.at_home(environment) for environment in environments]


class ReleaseReader(Protocol):
    """Releases and their revisions, as they are."""

    @property
    def name(self) -> str:
        """`kubernetes` or `local`."""

    @property
    def store(self) -> StoreReader:
        """Where evidence, journal and lock are kept, to be read."""

    def base_url(self, deployment: Deployment) -> str:
        """The URL to connect to for the deployment, without a trailing slash."""

    def route(self, deployment: Deployment) -> Route:
        """Return the name of that address and how it is reached, to be read; opens nothing."""

    def own_url(self, deployment: Deployment) -> str:
        """The URL of the release's own replicas, whatever of its traffic goes to the canary."""

    def replica_url(self, deployment: Deployment, replica: Replica) -> str:
        """The URL of this one replica of the release; empty where it cannot be reached by itself.

        Raises:
            UnreachableError: the path to it cannot be opened.
        """

    def weights(self, deployment: Deployment) -> Weights:
        """How the deployment's traffic is divided now.

        Raises:
            UsageError: there is nothing that divides it; the message says what is missing.
        """

    def path_errors(self, deployment: Deployment) -> PathErrors:
        """Return the connectivity errors on the path to that address; none where it is direct.

        Asked before and after an observation: what failed in between may be the path's fault.
        """

    def history(self, deployment: Deployment) -> Sequence[Revision]:
        """All revisions, oldest first; empty when the release does not exist."""

    def expected_history(self, deployment: Deployment) -> str | None:
        """Return what the history must have, as text, by what the platform has written down.

        Empty where it may be empty, None where nothing is written down.
        """

    def values(self, deployment: Deployment, revision: int) -> dict[str, Any]:
        """The values the revision's build was made of, the environment's overlay left out."""

    def build(self, deployment: Deployment, values: dict[str, Any]) -> Build:
        """The build that `values` make, resolved to digests as far as the platform can."""

    def running_differences(self, deployment: Deployment) -> Sequence[str]:
        """Return how what runs differs from what the newest revision's build rendered.

        One line for each difference; none where nothing is rendered.
        """

    def live_objects(self, deployment: Deployment) -> LiveObjects:
        """Return what runs the replicas of the release and of its canary, as it is now.

        Numbers of replicas that an autoscaler sets are left out.
        """

    def autoscaled_by(self, deployment: Deployment) -> Sequence[str]:
        """Return the names of the autoscalers that set its number of replicas."""

    def preflight(
        self,
        deployment: Deployment,
        values: Mapping[str, Any],
        *,
        capacity: int,
        steps: Sequence[int] = (),
    ) -> Preflight | None:
        """The facts about deploying `values` with `capacity` replicas, before it is done: at once,
        or by a ramp's `steps` in replicas. A canary's are those of the ramp by traffic.

        None where there is nothing to look at beforehand.
        """

    def undo_command(self, deployment: Deployment, revision: int | None) -> str:
        """Return the command that returns to `revision` (None: to nothing) without this suite.

        Empty where it takes the suite.
        """

    def replicas(self, deployment: Deployment) -> Sequence[Replica]:
        """The replicas that exist now, with what is known of their health."""

    def usage(self, deployment: Deployment) -> Usage:
        """Return what each replica uses of CPU, memory and GPUs, as far as the platform knows.

        Does not raise: what is not known says why.
        """

    def logs(self, deployment: Deployment, *, tail: int = 100) -> str:
        """The last `tail` log lines of each replica, secrets redacted."""

    def symptoms(self, deployment: Deployment) -> Sequence[Symptoms]:
        """Return what is known of each replica, and of those that could not be made."""
