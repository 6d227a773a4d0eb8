"""Interface between a load run and the pods that make its load."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTask:
    """Work for the pods: a load plan (JSON) against `base_url`, by so many workers."""

    plan: str
    base_url: str
    workers: int
    longest_seconds: float
    """From the start of the load until its last request has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodsSeen:
    """Observed state of the pods: texts that name each pod and say why."""

    master_ended: bool
    failed: str = ""
    """Of those that ended in failure; else empty."""
    waiting: str = ""
    """Of those that do not run yet; else empty."""


class LoadPods(Protocol):
    """Pods of a load generator; a platform makes them."""

    start_seconds: float
    """How long they may take to be there."""

    def start(self, task: LoadTask) -> None:
        """Make master and workers, once what an earlier run left is removed.

        Raises:
            ConflictError: another run loads the same deployment.
            UsageError: the task cannot be done there.
        """

    def url(self) -> str:
        """Return the URL of the master's logs; it need not answer yet."""

    def observe(self) -> PodsSeen:
        """Return the state of the pods.

        Raises:
            RolloutError: that cannot be found out.
        """

    def remove(self) -> None:
        """End and remove everything that `start` made."""
