"""GPUs of this machine: which there are, which replica has which, and what a change needs.

Each GPU of the pool is one replica's alone, whatever its model: the pool is in the state file.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Literal

from vllm_rollout.model.errors import DeployError, UnreachableError, UsageError
from vllm_rollout.model.preflight_facts import FREE_A_GPU, GpuRoom
from vllm_rollout.model.text import one_line
from vllm_rollout.platform.local.composition import Composition
from vllm_rollout.platform.local.state import GIVEN_UP, State
from vllm_rollout.platform.local.values import LocalValues, Seat

NO_FREE_GPU = "NoFreeGPU"
"""Reason of a replica that waits for GPUs."""

_QUESTION = ("nvidia-smi", "--query-gpu=index,mig.mode.current", "--format=csv,noheader")
_SECONDS = 30.0
_ROW = re.compile(r"\s*([0-9]+)\s*,\s*(Disabled|Enabled|\[?N/A\]?|\[Not Supported\])\s*")
"""A GPU, "0, Disabled": "[N/A]" where it cannot be divided, other words where it is lost."""
_SAID_CHARACTERS = 200
_LIST_THEM = "List the GPUs instead, as CUDA_VISIBLE_DEVICES has them: `local: {gpus: [0, 1]}`."


def find_gpus(wanted: Literal["auto"] | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the GPUs that the policy means; none where it gives none to replicas.

    Raises:
        UsageError: nvidia-smi is not there, or lists GPUs that are divided (MIG).
        UnreachableError: it does not answer, fails, or lists none, or one that is lost.
    """
    if wanted != "auto":
        return wanted or ()
    try:
        answer = subprocess.run(  # noqa: S603 - no shell, a fixed command
            _QUESTION, capture_output=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError:
        raise UsageError(
            "local.gpus is auto, and there is no nvidia-smi on PATH", remedy=_LIST_THEM
        ) from None
    except subprocess.TimeoutExpired as error:
        raise _unknown(f"no answer within {_SECONDS:g} s") from error
    except OSError as error:
        raise _unknown(str(error)) from error
    printed, wrong = (each.decode(errors="replace") for each in (answer.stdout, answer.stderr))
    rows = [row.groups() for row in map(_ROW.fullmatch, printed.splitlines()) if row]
    whole = len({index for index, _ in rows}) == len(printed.splitlines())
    if answer.returncode or not rows or not whole:
        said = one_line(wrong or printed)[:_SAID_CHARACTERS]
        raise _unknown(f"exit code {answer.returncode}: {said or 'it lists none'}")
    if divided := [index for index, mode in rows if mode == "Enabled"]:
        raise UsageError(
            f"local.gpus is auto, and GPU {divided[0]} is divided into MIG instances",
            remedy='List those: `local: {gpus: ["MIG-…", "MIG-…"]}`; nvidia-smi -L shows them.',
        )
    return tuple(index for index, _ in rows)


def _unknown(why: str) -> UnreachableError:
    return UnreachableError(
        f"which GPUs this machine has is not known: nvidia-smi: {why}",
        address="nvidia-smi",
        remedy=f"Run {' '.join(_QUESTION)} to see. {_LIST_THEM}",
    )


class Gpus:
    """The pool in the state file. A GPU that a replica has stays its own until its row is gone."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._database = state.database

    @property
    def pool(self) -> tuple[str, ...]:
        """The GPUs there are, in the policy's order."""
        sql = "SELECT device FROM gpus WHERE position IS NOT NULL ORDER BY position"
        return tuple(row["device"] for row in self._database.rows(sql))

    def fill(self, pool: Sequence[str]) -> None:
        """Have these GPUs in the pool, and no others; those in use leave it when they are free."""
        if self.pool == tuple(pool):
            return
        with self._database.transaction():
            self._database.execute("UPDATE gpus SET position = NULL")
            for position, device in enumerate(pool):
                self._database.execute(
                    "INSERT INTO gpus VALUES (?, ?, NULL) ON CONFLICT (device) DO UPDATE"
                    " SET position = excluded.position",
                    (device, position),
                )
            self._database.execute("DELETE FROM gpus WHERE position IS NULL AND replica IS NULL")

    def take(self, replica: str, count: int) -> Seat | None:
        """Give `replica` its slot and `count` GPUs, those it has if they suffice; None if fewer
        are free, and then it has none. Without a pool nobody is given any.
        """
        with self._database.transaction():
            slot, pool = self._slot(replica), self.pool
            own = self._of(replica)
            if pool and len(own) == count and set(own) <= set(pool):
                return Seat(slot, own)
            self.give_back(replica)
            free = self._free()[:count]
            if pool and len(free) < count:
                return None
            for device in free:
                sql = "UPDATE gpus SET replica = ? WHERE device = ?"
                self._database.execute(sql, (replica, device))
        return Seat(slot, tuple(free) if pool else None)

    def seat(self, replica: str) -> Seat | None:
        """Return what `replica` was given; None if nothing."""
        row = self._database.row("SELECT slot FROM slots WHERE replica = ?", (replica,))
        own = self._of(replica)
        return Seat(row["slot"], own if own or self.pool else None) if row else None

    def give_back(self, replica: str) -> None:
        """Give its GPUs back; its processes must be gone."""
        self._database.execute("UPDATE gpus SET replica = NULL WHERE replica = ?", (replica,))

    def room(
        self,
        name: str,
        wanted: Composition,
        values: Mapping[int, LocalValues],
        *,
        pool: tuple[str, ...] | None = None,
    ) -> GpuRoom:
        """Return what bringing the release to `wanted` takes, beside what all others have or will.

        `values` are those of revisions that are not written down yet; `pool` is the pool, if it is
        another than before. Replicas leave one by one
        where there is no room for all at once, but none before another is ready for it.

        Raises:
            UsageError: the values do not say how many GPUs a replica takes.
        """
        each = {p.build: self._each(name, p.revision, values) for p in wanted.parts}
        rows = [row for row in self._state.members(name) if row.phase != GIVEN_UP]
        have = [row for row in rows if row.ready]
        missing = [
            each[part.build]
            for part in wanted.parts
            if sum(row.build == part.build for row in rows) < part.replicas
        ]
        total = sum(part.replicas * each[part.build] for part in wanted.parts)
        replicas = sum(part.replicas for part in wanted.parts)
        held = sorted((len(self._of(row.id)) for row in have), reverse=True)
        surge = max(missing) if missing and have else 0
        needed = max(total, sum(held[:replicas]) + surge) if missing else 0
        return GpuRoom(
            pool=self.pool if pool is None else pool,
            held={
                other: taken
                for other in self._state.releases()
                if other != name and (taken := self._taken(other))
            },
            needed=needed,
            replicas=replicas,
            surge=max(0, needed - total),
        )

    def ensure_room(
        self, name: str, wanted: Composition, values: Mapping[int, LocalValues]
    ) -> None:
        """Return if there is a pool with room for `wanted`, or none at all.

        Raises:
            DeployError: there is no room.
        """
        if self.pool and not (room := self.room(name, wanted, values)).fits:
            raise DeployError(f"{name}: no free GPU: {room}", remedy=FREE_A_GPU)

    def _each(self, name: str, revision: int, values: Mapping[int, LocalValues]) -> int:
        if revision in values:
            return values[revision].gpus_each
        row = self._state.revision(name, revision)
        return LocalValues.model_validate(row.values).gpus_each if row else 0

    def _taken(self, name: str) -> int:
        """Return the GPUs that a release has, or will have when what it runs is in place.

        Those of replicas that leave are waited for, as those of the release itself.
        """
        has = sum(len(self._of(row.id)) for row in self._state.members(name))
        release = self._state.release(name)
        row = self._state.revision(name, release.desired) if release and release.desired else None
        if row is None:
            return has
        parts = row.composition.parts
        return max(has, sum(part.replicas * self._each(name, part.revision, {}) for part in parts))

    def _of(self, replica: str) -> tuple[str, ...]:
        sql = "SELECT device FROM gpus WHERE replica = ? ORDER BY position"
        return tuple(row["device"] for row in self._database.rows(sql, (replica,)))

    def _free(self) -> list[str]:
        sql = (
            "SELECT device FROM gpus WHERE replica IS NULL AND position IS NOT NULL"
            " ORDER BY position"
        )
        return [row["device"] for row in self._database.rows(sql)]

    def _slot(self, replica: str) -> int:
        rows = self._database.rows("SELECT replica, slot FROM slots ORDER BY slot")
        slots = {row["replica"]: int(row["slot"]) for row in rows}
        if replica not in slots:
            taken = set(slots.values())
            slots[replica] = next(n for n in range(len(taken) + 1) if n not in taken)
            self._database.execute("INSERT INTO slots VALUES (?, ?)", (replica, slots[replica]))
        return slots[replica]
