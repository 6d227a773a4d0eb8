"""Write access to a platform, for `rollout/` and the commands that change something.

An import contract keeps the code of gates and reports away from this module.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol, cast

from vllm_rollout.model.deployment import Deployment, Revision, Target
from vllm_rollout.platform.base import Lease, Weights
from vllm_rollout.platform.reader import ReleaseReader, StoreReader


class Guard(Protocol):
    """Says whether releases may still be changed: the model's lease, as changes see it."""

    def ensure(self) -> None:
        """Return only if the store says at this moment that the lease is ours.

        Raises:
            RolloutError: it is not, or the store cannot be asked.
        """

    def seconds_left(self) -> float:
        """Return how long the lease is certainly ours without a renewal; 0 when it is lost."""


class Store(StoreReader, Protocol):
    """Small JSON documents with compare-and-set, and leases. Survives the process and the job."""

    def write(self, key: str, value: Any, *, expect: str | None) -> str:
        """Write `value`; return its version.

        `expect` is the version being replaced, or None if the key must be new.

        Raises:
            ConflictError: the key is at another version.
        """

    def acquire(
        self, name: str, holder: str, *, ttl: timedelta, over: Lease | None = None
    ) -> Lease:
        """Take the lease where it is free, or take it over where it still is exactly `over`.

        Whether a lease has run out is for the caller to know, who saw it unchanged for its time
        to live: clocks of two machines need not agree, and one clock may be stepped.

        Raises:
            LeaseHeldError: another holds it, took it at this moment, or renewed it meanwhile.
            ConflictError: another had it at this moment.
        """

    def renew(self, name: str, holder: str, *, ttl: timedelta) -> Lease:
        """Renew the lease that `holder` has, and never one that it had once.

        Two threads may ask at once.

        Raises:
            ConflictError: it is another's by now, or nobody's: another may have had it between.
        """

    def release(self, name: str, holder: str) -> None:
        """Give the lease up if `holder` has it; otherwise do nothing."""


class ReleaseWriter(ReleaseReader, Protocol):
    """Changes releases. Each change makes a new revision, as Helm does."""

    @property
    def store(self) -> Store:
        """Where evidence, journal and lock are kept."""

    def guard(self, guard: Guard) -> None:
        """Ask `guard` from now on right before each request that changes a release.

        What takes its time (a Helm command) is ended when the guard has no seconds left.
        """

    def set_weights(
        self,
        deployment: Deployment,
        weights: Weights,
        *,
        expect: Weights | None,
        timeout: timedelta,
    ) -> None:
        """Divide the deployment's traffic, and return when that holds.

        `expect` is what it must be until now; None takes whatever there is.

        Raises:
            ForeignWeightsError: it is something else.
            WeightsChangedError: it is not in force within `timeout`.
            UsageError: as `weights`.
        """

    def apply(
        self, deployment: Deployment, target: Target, *, description: str, timeout: timedelta
    ) -> Revision:
        """Bring the release to `target` in a new revision and wait until its replicas are ready.

        Raises:
            ForeignChangeError: somebody else has changed what this would change.
            DeployError: not ready within `timeout`; the failed revision stays in the history. It
                is a NotReadyError where more is known.
            UnreachableError: the platform did not answer.
        """

    def rollback(
        self, deployment: Deployment, revision: int, *, description: str, timeout: timedelta
    ) -> Revision:
        """Make a new revision with the state of `revision` and wait until it is ready.

        Raises: as `apply`.
        """

    def field_conflicts(self, deployment: Deployment, revision: int | None = None) -> Sequence[str]:
        """Return the fields of `revision` that somebody else has set otherwise.

        One line for each, with who has set it; none where nobody else can. None is the newest
        revision, and what people have set: the platform's own controllers are left out then.
        """

    def uninstall(self, deployment: Deployment, *, timeout: timedelta) -> None:
        """Remove the release and everything that serves it. Removing nothing is no error."""

    def recover(self, deployment: Deployment, *, timeout: timedelta) -> str:
        """Clear what a killed client left half done, within `timeout`; say what was found, or "".

        Only for the holder of the model's lease: a dead client looks like a slow one.
        """


def writer_of(releases: ReleaseReader) -> ReleaseWriter:
    """The writer of what `releases` reads: every platform that `make_platform` makes is one."""
    return cast("ReleaseWriter", releases)
