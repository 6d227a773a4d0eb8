"""Reconciles the running replicas with the desired ones: starts new ones, then stops old ones."""

import asyncio
import itertools
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_rollout.model.deployment import short_digest
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.platform.base import Weights
from vllm_rollout.platform.local.composition import Part
from vllm_rollout.platform.local.processes import trim
from vllm_rollout.platform.local.proxy import Balancer, Upstream
from vllm_rollout.platform.local.replica import ReplicaKeeper, Surroundings
from vllm_rollout.platform.local.router_state import Wanted
from vllm_rollout.platform.local.state import ALL_STABLE, GIVEN_UP, ReplicaRow, RevisionRow
from vllm_rollout.platform.local.values import LocalValues


@dataclass(eq=False)
class Side:
    """One of the two sides as a whole. One that has nobody to serve it has no `url`."""

    url: str = ""
    open_requests: int = 0
    alone: bool = True


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
    leave at once. Those that were given up are replaced when another revision is desired, or a
    command says so. Where the missing ones wait for GPUs, those too many make room one by one.
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
        self._asked = False
        self._ready_before = 0
        self._stopping = False
        self._failed = ""

    def stop(self) -> None:
        """End all replicas, and then `run`."""
        self._stopping = True
        self._want_nothing()

    async def run(self) -> None:
        """Reconcile until stopped, or until the release is gone or wants nothing to run.

        Cancelled, it leaves every replica running for the next router.
        """
        async with asyncio.TaskGroup() as lives:
            writing = lives.create_task(self._around.state.keep_writing())
            try:
                for row, made_of in await self._around.state.replicas():
                    self._keep(row, made_of, lives, found=True)
                await self._reconcile(lives)
            finally:
                writing.cancel()

    async def _reconcile(self, lives: asyncio.TaskGroup) -> None:
        for tick in itertools.count():
            try:
                self._follow(await self._around.state.read(), lives)
                if tick % _TRIM_EVERY_TICKS == 0:
                    await self._trim()
                self._failed = ""
            except UnreachableError:
                pass  # it is in the log: what runs goes on running
            except Exception as error:  # noqa: BLE001 - logged, and tried again
                if self._failed != (failed := repr(error)):
                    _log.exception("tried again until it works")
                self._failed = failed
            if self._asked and self._desired is None and not self._keepers:
                return
            await asyncio.sleep(_TICK_SECONDS)

    def refresh(self) -> None:
        """Tell the balancers who is ready, and at which weight."""
        ready: dict[Upstream, float] = {
            each: self._weight(each) for each in self._keepers if each.ready
        }
        self._own.update(ready)
        self._balancer.update(with_canary(ready, self._weights, self._canary))

    def _follow(self, wanted: Wanted | None, lives: asyncio.TaskGroup) -> None:
        self._asked = True
        if wanted is None or self._stopping:
            self._want_nothing()
            return
        self._around.release = wanted.release
        if self._desired is None or self._desired.number != wanted.revision.number:
            self._desired = wanted.revision
            self._ready_before = sum(each.ready for each in self._keepers)
            for each in self._keepers:
                if each.row.phase == GIVEN_UP:
                    each.leave()
            self.refresh()
        for each in self._keepers:
            if each.row.id in wanted.again and each.row.phase == GIVEN_UP:
                each.leave()
        in_place = self._in_place(wanted, lives)
        self._divide(wanted)
        settled = wanted.release.settled == wanted.revision.number
        self._around.state.settle(
            wanted.revision.number if in_place and not settled else None,
            None if wanted.in_force else wanted.weights,
        )

    def _want_nothing(self) -> None:
        self._desired = None
        for each in self._keepers:
            each.leave()

    def _in_place(self, wanted: Wanted, lives: asyncio.TaskGroup) -> bool:
        """Start what is missing, let go what is too many; True if all that is wanted is ready."""
        kept: list[ReplicaKeeper] = []
        for part in wanted.revision.composition.parts:
            have = [each for each in self._keepers if each.row.build == part.build]
            have = [each for each in have if not each.leaving]
            while len(have) < part.replicas:
                made_of = wanted.made_of[part.revision]
                have.append(self._keep(self._new_row(part), made_of, lives))
            # The ready ones first, and of those the oldest.
            kept += sorted(have, key=lambda each: not each.ready)[: part.replicas]
        in_place = all(each.ready for each in kept)
        surplus = [each for each in self._keepers if each not in kept and not each.leaving]
        for each in surplus:
            if in_place or not each.served:
                each.leave()
        self._make_room(kept, surplus)
        return in_place

    def _make_room(self, kept: Sequence[ReplicaKeeper], surplus: Sequence[ReplicaKeeper]) -> None:
        """Let as many leave as wait for GPUs, and as can be spared: the ready ones stay as many as
        before the change, or as shall be.
        """
        waiting = sum(each.waits_for_gpus for each in kept)
        waiting -= sum(each.leaving for each in self._keepers)
        ready = sum(each.ready for each in self._keepers)
        spare = ready - min(len(kept), self._ready_before)
        for each in sorted(surplus, key=lambda each: each.ready):
            if waiting <= 0 or each.leaving or (each.ready and spare <= 0):
                continue
            waiting -= 1
            spare -= each.ready
            each.leave()

    def _divide(self, wanted: Wanted) -> None:
        """Follow the weights that the release is asked to divide its traffic by."""
        url = self._canary.url if self._canary else ""
        if wanted.weights != self._weights or wanted.canary_url != url:
            self._weights = wanted.weights
            self._canary = Side(wanted.canary_url) if wanted.weights.canary else None
            self.refresh()

    def _new_row(self, part: Part) -> ReplicaRow:
        replica_id = str(uuid.uuid4())
        release = self._around.release.name
        short = short_digest(part.build, 7)
        return ReplicaRow(
            id=replica_id,
            release=release,
            name=f"{release.partition('.')[2]}-{short}-{replica_id[:5]}",
            build=part.build,
            revision=part.revision,
        )

    def _keep(
        self,
        row: ReplicaRow,
        made_of: RevisionRow,
        lives: asyncio.TaskGroup,
        *,
        found: bool = False,
    ) -> ReplicaKeeper:
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

    async def _trim(self) -> None:
        names = ["router", *(each.row.name for each in self._keepers)]
        live = {self._around.logs / f"{name}.log" for name in names}
        await asyncio.to_thread(trim, self._around.logs, live=live)
