"""The stall dial: periodic freezes of the engine."""

import asyncio

from vllm_rollout.simulator.dials import Dials
from vllm_rollout.simulator.engine import Engine


class Stalls:
    """Freezes the engine for `stall_seconds` at the end of every `stall_every_seconds`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: Engine) -> None:
        self._loop = loop
        self._engine = engine
        self._timer: asyncio.TimerHandle | None = None
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._stall_seconds = 0.0
        self._flowing_seconds = 0.0

    async def over(self) -> None:
        """Return as soon as nothing is frozen."""
        await self._thawed.wait()

    def turn(self, dials: Dials) -> None:
        """Begin a new period with the dials' times; a freeze under way ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stall_seconds = dials.stall_seconds
        self._flowing_seconds = dials.stall_every_seconds - dials.stall_seconds
        self._thaw()

    def _freeze(self) -> None:
        self._thawed.clear()
        self._engine.pause("stall", on=True)
        self._timer = self._loop.call_later(self._stall_seconds, self._thaw)

    def _thaw(self) -> None:
        self._thawed.set()
        self._engine.pause("stall", on=False)
        if self._stall_seconds:
            self._timer = self._loop.call_later(self._flowing_seconds, self._freeze)
