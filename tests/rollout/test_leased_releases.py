"""Changes of releases: each asks for the lease itself, whatever the platform asks."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from support.simulated import ALL_STABLE
from support.world import MODEL, PRODUCTION, World

from vllm_rollout.model.deployment import Build, Target
from vllm_rollout.rollout.journal import Event, JournalEntry
from vllm_rollout.rollout.lease import LeaseLostError
from vllm_rollout.rollout.leased_releases import LeasedReleases

CHANGES: dict[str, Callable[[LeasedReleases, Build, JournalEntry], Any]] = {
    "begin": lambda releases, build, _: releases.begin(build, before=1, note=""),
    "take over": lambda releases, _, entry: releases.take_over(entry),
    "advance": lambda releases, _, entry: releases.advance(entry, Event.STEP, ""),
    "recover": lambda releases, *_: releases.recover(),
    "apply": lambda releases, build, _: releases.apply(
        PRODUCTION, Target(build=build, values={}, replicas=1, capacity=4), ""
    ),
    "roll back": lambda releases, *_: releases.rollback(1, ""),
    "uninstall": lambda releases, *_: releases.uninstall(PRODUCTION),
    "set weights": lambda releases, *_: releases.set_weights(ALL_STABLE, None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_is_made_after_the_lease_was_lost(world: World, change: str) -> None:
    releases, store = world.tools().releases, world.platform.store
    build = world.platform.build(PRODUCTION, {"version": 2})
    with releases.leased():
        entry = releases.begin(build, before=1, note="about to begin")
        world.platform.guarded_by = None
        world.platform.calls.clear()
        assert releases.lease is not None
        store.release(MODEL, releases.lease.holder)
        store.acquire(MODEL, "another run", ttl=timedelta(seconds=30))

        with pytest.raises(LeaseLostError):
            CHANGES[change](releases, build, entry)

    assert world.platform.calls == []
    assert world.journal() == entry
