"""Rollouts whose policy has triggers on resources."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from support.traffic import CLIMB
from support.world import BY_TRAFFIC, World

from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.live_figures import Figure, FigureName
from vllm_rollout.model.observation import FiguresRead
from vllm_rollout.observe.figure_readings import Readings
from vllm_rollout.rollout.engine import gate_and_promote

FULL = Figure(value=0.97, source="a replica")


def reads(monkeypatch: pytest.MonkeyPatch, world: World, figure: Figure | None) -> list[bool]:
    """Have each watch read the figure as of now; return of each reading whether of a canary."""
    of_canary: list[bool] = []

    def new(self: Readings, _seconds: float) -> tuple[FiguresRead, ...]:
        assert self._reader is not None
        of_canary.append(self._reader._needs_canary)
        at = world.clock.now()
        if figure is None:
            return (FiguresRead(at=at, problem="the API server is away"),)
        sampled: Any = {FigureName.KV_CACHE: Figure(value=figure.value, source="r", at=at)}
        return (FiguresRead(at=at, figures=sampled),)

    monkeypatch.setattr(Readings, "__enter__", lambda self: self)
    monkeypatch.setattr(Readings, "new", new)
    world.overrides["triggers.kv_cache"] = {"above": "90%", "for": "1m"}
    return of_canary


def test_a_full_kv_cache_of_the_canary_brings_the_traffic_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.overrides.update(BY_TRAFFIC)
    of_canary = reads(monkeypatch, world, FULL)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    fires = "the canary of production/llama-2-7b: use of the KV cache: 97%, above 90% for 1m"
    assert fires in evidence.conclusion
    assert world.platform.calls[:2] == CLIMB[:2]
    assert all(of_canary)


def test_a_step_of_which_the_resource_is_not_known_does_not_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.overrides.update(BY_TRAFFIC)
    reads(monkeypatch, world, None)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.UNREACHABLE
    assert "went blind (use of the KV cache: the API server is away)" in evidence.conclusion
    said = [f"{step.title}: {step.detail}" for step in evidence.steps]
    (blind,) = (text for text in said if "the watch is blind" in text)
    assert "use of the KV cache; the API server is away" in blind


def test_a_promoted_build_whose_resources_fill_up_is_rolled_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.overrides["ramp"] = [{"share": "100%", "hold": "0s"}]
    of_canary = reads(monkeypatch, world, FULL)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "use of the KV cache: 97%" in evidence.conclusion
    assert not any(of_canary)


def test_a_first_sample_that_comes_late_ends_no_rollout(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.overrides["ramp"] = [
        {"replicas": 1, "hold": "1s"},
        {"share": "100%", "hold": "0s"},
    ]
    reads(monkeypatch, world, replace(FULL, value=0.5))
    known = Readings.new
    calls: Counter[Readings] = Counter()

    def late(self: Readings, seconds: float) -> tuple[FiguresRead, ...]:
        calls[self] += 1
        return known(self, seconds) if calls[self] > 3 else ()

    monkeypatch.setattr(Readings, "new", late)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.OK
    said = [f"{step.title}: {step.detail}" for step in evidence.steps]
    assert any("watched on" in text and "not known yet" in text for text in said)
