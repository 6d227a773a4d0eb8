"""A ramp begins where it fits into the windows, and takes no step while production is closed."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.simulated import WEDNESDAY
from support.world import PRODUCTION, RAMP, World, healthy, kinds

from vllm_rollout.model.errors import ExitCode, UsageError
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.run import Emergency

SLOWLY = {"watch.interval": "1m", "windows.whole_ramp": True}
SHAPES: dict[str, dict[str, Any]] = {
    "replicas": {},
    "traffic": {
        "canary.by": "traffic",
        "canary.latency": False,
        "canary.error_rate": False,
        "ramp": [{"share": "25%", "hold": "1h"}, {"share": "100%", "hold": "1h"}],
    },
}
LATE = {**SLOWLY, "windows.whole_ramp": False}


def at(world: World, hours: float) -> None:
    """Let the clock stand at so many hours after ten on Wednesday."""
    world.clock.seconds = hours * 3600


def changed_at(world: World) -> list[float]:
    """Hours of the clock at which production is changed from here on."""
    found: list[float] = []
    world.platform.in_change = lambda _call: found.append(world.clock.seconds / 3600)
    return found


def test_a_ramp_that_does_not_fit_is_not_begun(world: World) -> None:
    world.overrides |= SLOWLY
    at(world, 4)  # two hours before the windows close

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert (
        "the ramp takes 2h32m10s at least (holds, load and watch), and production closes "
        "Wednesday 2026-11-18 16:00 UTC (16:00 is outside 09:00-16:00 UTC)); the next opens "
        "Thursday 2026-11-19 09:00 UTC" in evidence.conclusion
    )
    assert world.platform.calls == []
    hours = world.overrides | {"windows.hours": {"from": "09:00", "to": "11:00"}}
    world.overrides, kept = hours, world.overrides
    assert "no window is so long. Shorten the ramp" in gate_and_promote(world.tools()).conclusion
    with pytest.raises(UsageError, match="no window is so long"):
        gate_and_promote(world.tools(), wait_for_window=True)
    world.overrides = kept

    waited = gate_and_promote(world.tools(), wait_for_window=True)
    assert waited.exit_code == ExitCode.OK
    assert waited.started == WEDNESDAY + timedelta(hours=23)


@pytest.mark.parametrize("by", SHAPES)
def test_a_closed_window_holds_the_ramp_between_steps(world: World, by: str) -> None:
    world.overrides |= LATE | SHAPES[by]
    at(world, 4.5)
    told: list[tuple[str, str]] = []
    changes = changed_at(world)

    evidence = gate_and_promote(
        world.tools(notify=lambda kind, text, **_: told.append((kind, text)))
    )

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert not [hour for hour in changes if 6 <= hour < 23]
    assert max(changes) >= 23
    (why,) = [text for kind, text in told if kind == "waiting"]
    assert "held where it is, until Thursday 2026-11-19 09:00 UTC" in why
    assert "16:30 is outside 09:00-16:00 UTC" in why


@pytest.mark.parametrize("by", SHAPES)
def test_a_closed_window_takes_the_ramp_back_where_the_policy_says(world: World, by: str) -> None:
    world.overrides |= LATE | SHAPES[by] | {"windows.closed_in_ramp": "go_back"}
    at(world, 5.5)
    before = world.platform.releases[PRODUCTION.release][-1].build

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "windows.closed_in_ramp is go_back" in evidence.conclusion
    assert world.platform.releases[PRODUCTION.release][-1].build == before
    assert kinds(world)[-1] == "rolled-back"


def test_a_held_ramp_is_watched(world: World) -> None:
    world.overrides |= LATE
    at(world, 5.5)
    ill = ProbeSample(total=10, failures=10, latencies_seconds=(), healthy=False)
    world.probes = lambda seconds: ill if seconds > 10 * 3600 else healthy(seconds)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert world.platform.calls == [RAMP[0], "rollback production 1"]


def test_a_calendar_that_goes_away_in_a_ramp_undoes_nothing(world: World, tmp_path: Path) -> None:
    file = tmp_path / "freezes.ics"
    file.write_text("BEGIN:VCALENDAR\nVERSION:2.0\nPRODID:x\nEND:VCALENDAR\n")
    world.overrides |= SLOWLY | {"windows.closed_in_ramp": "go_back", "windows.calendar": str(file)}
    content = file.read_bytes()

    def meanwhile(call: str) -> None:
        if call == RAMP[0]:
            file.unlink()

    world.platform.in_change = meanwhile
    said: list[str] = []

    def bring_back(_kind: str, text: str, **_: str) -> None:
        if "is held where it is" in text:
            said.append(text)
            file.write_bytes(content)

    evidence = gate_and_promote(world.tools(notify=bring_back))

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert "cannot be read" in said[0]


def test_an_emergency_is_asked_for_no_window(world: World) -> None:
    world.overrides |= SLOWLY | {"windows.closed_in_ramp": "go_back"}
    at(world, 5.5)

    evidence = gate_and_promote(world.tools(emergency=Emergency(by="Ada", reason="a hole")))

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert evidence.override is not None
    assert "the ramp takes" in " ".join(evidence.override.passed_over)
    assert world.clock.seconds < 9 * 3600
