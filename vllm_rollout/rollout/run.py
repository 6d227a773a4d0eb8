"""One rollout: its identity, its deployments, its policy, and the people who answer for it."""

from dataclasses import dataclass
from pathlib import Path

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Emergency:
    """Emergency override: a named person waives preconditions, for a stated reason.

    It waives time and people: the soak, the deployment windows and freezes, the on-call check, a
    pending sign-off, and evidence of earlier stages. The gates still run and must pass, a rejection
    stands, the ramp is climbed and production is watched.
    """

    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One rollout from `source` to `target`, with the policy of its model.

    `who` runs it and `reason` is what they gave; `folder` takes its reports and logs.
    """

    id: str
    source: Deployment
    target: Deployment
    policy: Policy
    who: str
    reason: str
    folder: Path
    emergency: Emergency | None = None

    @property
    def serves_users(self) -> bool:
        """True if the target is the last environment, the one with users' traffic."""
        return self.target.environment == self.policy.order[-1]
