"""Reconciles the running replicas with the desired ones: starts new ones, then stops old ones."""

import asyncio
import itertools
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.platform.base import Weights
from vllm_rollout.platform.local.composition import Part
from vllm_rollout.platform.local.processes import trim
from vllm_rollout.platform.local.proxy import Balancer, Upstream
from vllm_rollout.platform.local.replica import GIVEN_UP, ReplicaKeeper, Surroundings
from vllm_rollout.platform.local.state import ALL_STABLE, ReplicaRow, RevisionRow
from vllm_rollout.platform.local.values import LocalValues
from vllm_rollout.ports import LOOPBACK


def canary_key(release: str) -> str:
    """The name, in the state file, of the canary of the release that is called `release` there."""
    return f"{release}-canary"


@dataclass(eq=False)
class Side:
    """One of the two sides as a whole. One that has nobody to serve it has no `url`."""

    url: str = ""
    open_requests: int = 0


_NOBODY = Side()


def with_canary(
    own: Mapping[Upstream, float], weights: Weights, canary: Side | None
) -> dict[Upstream, float]:
    """The weights of the own replicas and of the canary's router, each side in its share.

    A side that has nobody to serve it keeps its share, whose requests fail: to give it to the
    other, which was not sized for it, would hide the failure and might make another.
    """
    if canary is None or not weights.canary:
        return dict(own)
    whole = sum(own.values())
    divided: dict[Upstream, float] = {
        each: weight * weights.stable / whole for each, weight in own.items()
    }
    if not own:
        divided[_NOBODY] = weights.stable
    divided[canary] = weights.canary
    return divided


_TICK_SECONDS = 0.1
_TRIM_EVERY_TICKS = 100

_log = logging.getLogger(__name__)


class Reconciler:
    """Follows the release's desired revision.

    The rule of a change: replicas that are missing are started; those that are too many go on
    serving until *every* replica of the desired composition is ready, and leave only then. So
    there are never fewer ready replicas than before or than desired, whichever is less, and a
    revision that does not come up takes nothing away. Replicas too many that never became ready
    leave at once. Those that were given up are replaced when another revision is desired.
    """

    def __init__(
        self, around: Surroundings, balancer: Balancer[Upstream], own: Balancer[Upstream]
    ) -> None:
        """`balancer` divides all of the traffic, `own` what is asked of the own replicas only."""
        self._around = around
        self._balancer = balancer
        self._own = own
        self._weights = ALL_STABLE
        self._canary: Side | None = None
        self._keepers: list[ReplicaKeeper] = []
        self._desired: RevisionRow | None = None
        self._stopping = False

    def stop(self) -> None:
        """End all replicas, and then `run`."""
        self._stopping = True

    async def run(self) -> None:
        """Reconcile until stopped, or until the release is gone or wants nothing to run.

        Cancelled, it leaves every replica running for the next router.
        """
        async with asyncio.TaskGroup() as lives:
            for row in self._around.state.replicas(self._around.release.name):
                self._keep(row, lives, found=True)
            for tick in itertools.count():
                try:
                    self._step(lives)
                    self._divide()
                    if tick % _TRIM_EVERY_TICKS == 0:
                        self._trim()
                except (UnreachableError, OSError) as error:
                    # The state file is locked or the disk full: what runs goes on running.
                    _log.warning("%s", error)
                if self._desired is None and not self._keepers:
                    return
                await asyncio.sleep(_TICK_SECONDS)

    def refresh(self) -> None:
        """Tell the balancers who is ready, and at which weight."""
        ready: dict[Upstream, float] = {
            each: self._weight(each) for each in self._keepers if each.ready
        }
        self._own.update(ready)
        self._balancer.update(with_canary(ready, self._weights, self._canary))

    def _step(self, lives: asyncio.TaskGroup) -> None:
        self._read()
        if self._desired is None:
            for each in self._keepers:
                each.leave()
            return
        kept: list[ReplicaKeeper] = []
        for part in self._desired.composition.parts:
            have = [each for each in self._keepers if each.row.build == part.build]
            have = [each for each in have if not each.leaving]
            while len(have) < part.replicas:
                have.append(self._keep(self._new_row(part), lives))
            # The ready ones first, and of those the oldest.
            kept += sorted(have, key=lambda each: not each.ready)[: part.replicas]
        in_place = all(each.ready for each in kept)
        for each in self._keepers:
            if each not in kept and (in_place or not each.served):
                each.leave()
        if in_place and self._around.release.settled != self._desired.number:
            self._around.state.settle(self._around.release.name, self._desired.number)

    def _divide(self) -> None:
        """Follow the weights that the release is asked to divide its traffic by."""
        state, name = self._around.state, self._around.release.name
        weights = state.weights(name)
        canary = state.release(canary_key(name)) if weights.canary else None
        url = f"http://{LOOPBACK}:{canary.port}" if canary else ""
        if weights != self._weights or url != (self._canary.url if self._canary else ""):
            self._weights = weights
            self._canary = Side(url) if weights.canary else None
            self.refresh()
        if not state.weights_in_force(name):
            state.enforce_weights(name, weights)

    def _read(self) -> None:
        release = self._around.state.release(self._around.release.name)
        if self._stopping or release is None or release.desired is None:
            self._desired = None
            return
        self._around.release = release
        if self._desired is None or self._desired.number != release.desired:
            self._desired = self._around.state.revision(release.name, release.desired)
            for each in self._keepers:
                if each.row.phase == GIVEN_UP:
                    each.leave()
            self.refresh()

    def _new_row(self, part: Part) -> ReplicaRow:
        replica_id = str(uuid.uuid4())
        release = self._around.release.name
        short = part.build.removeprefix("sha256:")[:7]
        return ReplicaRow(
            id=replica_id,
            release=release,
            name=f"{release.partition('.')[2]}-{short}-{replica_id[:5]}",
            build=part.build,
            revision=part.revision,
        )

    def _keep(
        self, row: ReplicaRow, lives: asyncio.TaskGroup, *, found: bool = False
    ) -> ReplicaKeeper:
        made_of = self._around.state.revision(row.release, row.revision)
        if made_of is None:
            raise RuntimeError(f"replica {row.name} is of revision {row.revision}, which is gone")
        values = LocalValues.model_validate(made_of.values)
        keeper = ReplicaKeeper(row, values, self._around, changed=self.refresh, found=found)
        self._keepers.append(keeper)
        life = lives.create_task(keeper.run(), name=row.name)
        life.add_done_callback(lambda _: self._keepers.remove(keeper))
        return keeper

    def _weight(self, keeper: ReplicaKeeper) -> float:
        """Return a replica's share. One of a build being removed counts as an average one."""
        parts = () if self._desired is None else self._desired.composition.parts
        for part in parts:
            if part.build == keeper.row.build:
                return part.weight / part.replicas
        replicas = sum(part.replicas for part in parts)
        return sum(part.weight for part in parts) / replicas if replicas else 1.0

    def _trim(self) -> None:
        names = ["router", *(each.row.name for each in self._keepers)]
        trim(self._around.logs, live={self._around.logs / f"{name}.log" for name in names})
