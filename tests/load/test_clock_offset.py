"""The offset of two clocks, read by a process that others keep from its core."""

import time

import pytest

from vllm_rollout.load.clock_offset import wall_less_monotonic


def test_a_pause_between_two_readings_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, reads = [100.0], iter([5.0, 0.3, 0.0, 0.0, 7.0])

    def monotonic() -> float:
        now[0] += next(reads, 0.01)
        return now[0]

    def wall() -> float:
        now[0] += next(reads, 0.01)
        return now[0] + 1000.0

    monkeypatch.setattr(time, "monotonic", monotonic)
    monkeypatch.setattr(time, "time", wall)
    assert wall_less_monotonic() == pytest.approx(1000.0, abs=0.01)
