"""Waiting for the pods of a change: by Helm, and then until all that were asked for are Ready."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import DeployError, RolloutError, UnreachableError
from vllm_rollout.model.text import shown
from vllm_rollout.model.units import format_about, format_duration
from vllm_rollout.platform.kubernetes.readiness import Readiness
from vllm_rollout.platform.kubernetes.templates import Json
from vllm_rollout.platform.progress import show_progress

_LOOK_SECONDS = 0.5
_LONGEST_LOOK_SECONDS = 5.0
_SHOW_SECONDS = 5.0
_BLIND_SECONDS = 60.0
"""An API server that does not answer for longer than this ends the wait."""
_LONGEST_LINE = 200

ReadinessOf = Callable[[Deployment, Sequence[Json]], Readiness]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodWait:
    """Waits for the pods that the objects of a release ask for.

    `still_allowed` raises where the wait has to end, because the lease is lost.
    """

    readiness: ReadinessOf
    still_allowed: Callable[[], None]

    def made(
        self,
        deployment: Deployment,
        objects: Sequence[Json],
        *,
        limit: timedelta,
        change: Callable[[timedelta], None],
    ) -> None:
        """Make the `change`, and return when all pods that `objects` ask for are Ready.

        Raises:
            DeployError: they are not within `limit`.
            UnreachableError: the API server did not answer for a minute.
            KeyboardInterrupt: with the state in which it leaves the release.
            RolloutError: as `change` and `still_allowed`.
        """
        begun = time.monotonic()
        try:
            with self._shown(deployment, objects, begun, limit):
                change(limit)
                self._wait(deployment, objects, begun, limit)
        except KeyboardInterrupt as error:
            far = self.how_far(deployment, objects)
            raise KeyboardInterrupt(
                f"{deployment} is left half changed, and the next deployment, rollout or rollback "
                f"goes on from there: {far}"
            ) from error

    def how_far(self, deployment: Deployment, objects: Sequence[Json]) -> str:
        """Return how many of the pods are Ready, and what is known of the others."""
        try:
            return str(self.readiness(deployment, objects))
        except RolloutError as error:
            return f"its pods could not be read: {error}"

    def _wait(
        self, deployment: Deployment, objects: Sequence[Json], begun: float, limit: timedelta
    ) -> None:
        until, seen, pause = begun + limit.total_seconds(), time.monotonic(), _LOOK_SECONDS
        while True:
            self.still_allowed()
            try:
                if self.readiness(deployment, objects).complete:
                    return
                seen = time.monotonic()
            except UnreachableError:
                if time.monotonic() - seen > _BLIND_SECONDS:
                    raise
            if time.monotonic() >= until:
                raise DeployError(f"{deployment} is not ready within {format_duration(limit)}")
            time.sleep(pause)
            pause = min(_LONGEST_LOOK_SECONDS, 1.1 * pause)

    @contextmanager
    def _shown(
        self, deployment: Deployment, objects: Sequence[Json], begun: float, limit: timedelta
    ) -> Iterator[None]:
        """Show every few seconds how far it is."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(_SHOW_SECONDS):
                with suppress(RolloutError):
                    far = shown(str(self.readiness(deployment, objects)), _LONGEST_LINE)
                    passed = timedelta(seconds=round(time.monotonic() - begun))
                    if not ended.is_set():
                        show_progress(
                            f"{deployment}, {format_about(passed)} of at most "
                            f"{format_duration(limit)}: {far}"
                        )

        threading.Thread(target=follow, daemon=True, name="progress").start()
        try:
            yield
        finally:
            ended.set()
