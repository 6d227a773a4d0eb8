"""What a watch has no data for: one message says all of it."""

from types import SimpleNamespace
from typing import Any

from support.world import PRODUCTION, World

from vllm_rollout.judge.rollback_triggers import Found
from vllm_rollout.rollout.blindness import Blindness


def test_what_is_lost_at_once_is_one_message(world: World) -> None:
    told: list[str] = []
    log: Any = SimpleNamespace(
        now=world.clock.now,
        log_step=lambda *_: None,
        notify=lambda _kind, text, headline="": told.append(f"{headline}{text}"),
    )
    blindness = Blindness(log)
    lost = Found(blind=("crash loop",), unseen=("error rate by Prometheus",), nothing=True)
    partly = Found(unseen=("error rate by Prometheus",))
    for found in (partly, lost, lost):
        blindness.see(PRODUCTION, found, why="; no path", gap="error rate by Prometheus: away")

    by_prometheus = "from Prometheus: error rate by Prometheus: away"
    assert [text.partition("no data of ")[2] for text in told] == [
        f"{PRODUCTION} {by_prometheus}",
        f"{PRODUCTION}: crash loop; no path; {by_prometheus}",
    ]
