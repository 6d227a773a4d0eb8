"""Traffic divided by weight between a release and its canary: exactly, and no request is lost."""

import sqlite3
from collections import Counter
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from support.local_release import LocalRelease, tiny

from vllm_rollout.platform.base import ForeignWeightsError, Weights
from vllm_rollout.platform.local import database
from vllm_rollout.platform.local.state import open_state

SHORT = timedelta(seconds=20)


def test_traffic_moves_by_weight_comes_back_and_no_request_is_lost(release: LocalRelease) -> None:
    platform, deployment = release.platform, release.deployment
    canary = LocalRelease(platform, deployment.canary)
    release.apply(tiny("a"), 2, 2)
    before = platform.weights(deployment)
    with release.clients() as lost:
        canary.apply(tiny("b"))
    assert release.served(8) == {"a": 8}
    for share, served in ((0.1, {"a": 18, "b": 2}), (0.5, {"a": 10, "b": 10}), (1, {"b": 20})):
        now = platform.weights(deployment)
        with release.clients() as lost_in_step:
            platform.set_weights(deployment, Weights.of_share(share), expect=now, timeout=SHORT)
        lost += lost_in_step
        assert release.served(20) == served
        own = f"{platform.own_url(deployment)}/v1/completions"
        answers = [httpx.post(own, json={}).json() for _ in range(4)]
        assert Counter(answer["build"] for answer in answers) == {"a": 4}
    with release.clients() as lost_on_return:
        platform.set_weights(deployment, before, expect=None, timeout=SHORT)
        platform.uninstall(deployment.canary, timeout=SHORT)
    lost += lost_on_return
    assert release.served(8) == {"a": 8}
    assert lost == []
    assert platform.weights(deployment) == before


def test_weights_that_another_has_changed_are_left_alone(release: LocalRelease) -> None:
    release.apply(tiny("a"))
    platform, deployment = release.platform, release.deployment
    half = Weights.of_share(0.5)
    platform.set_weights(deployment, half, expect=None, timeout=SHORT)
    with pytest.raises(ForeignWeightsError, match="weights are 5000:5000, and were 1:0"):
        platform.set_weights(
            deployment, Weights.of_share(0.9), expect=Weights(stable=1), timeout=SHORT
        )
    assert platform.weights(deployment) == half


def test_a_share_without_anybody_to_serve_it_fails_and_is_not_given_to_the_other_side(
    release: LocalRelease,
) -> None:
    release.apply(tiny("a"))
    half = Weights.of_share(0.5)
    release.platform.set_weights(release.deployment, half, expect=None, timeout=SHORT)

    statuses = Counter(httpx.post(f"{release.url}/v1/completions").status_code for _ in range(10))

    assert statuses == {200: 5, 502: 5}


def test_a_state_file_from_before_there_were_weights_gets_them(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "state.db")) as old:
        old.executescript(database._SCHEMA + "PRAGMA user_version = 1;")

    state = open_state(tmp_path)

    state.put_release("a", "a", startup_timeout_seconds=1, max_restarts=1, drain_seconds=1)
    state.put_weights("a", Weights(stable=3, canary=1))
    assert state.weights("a") == Weights(stable=3, canary=1)
