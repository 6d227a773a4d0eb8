"""Production gates that cannot know: held, asked again, then kept or rolled back."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from support.world import PRODUCTION, ScriptedGates, World, builds, kinds

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.live_slo import error_rate_verdicts
from vllm_rollout.judge.rate import rate_verdict
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import GateRun
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.model.request_counts import RequestCounts
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.evidence_store import PassedRevisionsReader
from vllm_rollout.rollout.journal import Phase

PASSED = Verdict(outcome=Outcome.PASS, reason="")
(NO_DATA,) = error_rate_verdicts(
    [RequestCounts(source="servers", unknown="no scrape")], limit=0.001, confidence=0.95
)
FEW = rate_verdict(0, 40, limit=0.001, confidence=0.95)
BAD = rate_verdict(9, 6600, limit=0.001, confidence=0.95)


class AskedAgain(ScriptedGates):
    """Of production's two gates `health` passes; the other's verdicts come one after the other."""

    second = "live_metrics"
    verdicts: Sequence[Verdict] = ()
    asked: list[tuple[str, ...]]

    def _run(self, deployment: Deployment, kind: str, gates: Sequence[str]) -> GateRun:
        if kind != "production":
            return super()._run(deployment, kind, gates)
        both = ("health", self.second)
        asked = both if "health" in gates else tuple(gates)
        self.asked.append(asked)
        verdict = self.verdicts[min(len(self.asked), len(self.verdicts)) - 1]
        run = super()._run(deployment, kind, asked)
        return replace(
            run,
            expected=both,
            gates=tuple(
                replace(g, verdicts=(verdict if g.gate == self.second else PASSED,))
                for g in run.gates
            ),
        )


Asks = Callable[..., AskedAgain]


@pytest.fixture
def asks(world: World) -> Asks:
    """Let production's second gate answer so, the last verdict again and again."""

    def asks(*verdicts: Verdict, second: str = "live_metrics") -> AskedAgain:
        gates = world.gates = AskedAgain(world.platform, world.clock)
        gates.verdicts, gates.second, gates.asked = verdicts, second, []
        return gates

    return asks


def passed_there(world: World) -> bool:
    build = world.platform.history(PRODUCTION)[-1].build
    return PassedRevisionsReader(world.platform.store).build_passed(PRODUCTION, build)


def test_a_gate_that_comes_to_know_is_asked_again_alone(world: World, asks: Asks) -> None:
    gates = asks(NO_DATA, NO_DATA, PASSED)
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert gates.asked == [("health", "live_metrics"), ("live_metrics",), ("live_metrics",)]
    assert evidence.runs[-1].outcome is Outcome.PASS
    assert {g.gate for g in evidence.runs[-1].gates} == {"health", "live_metrics"}
    assert passed_there(world)


@pytest.mark.parametrize("unseen", [NO_DATA, FEW], ids=["no data", "too few requests"])
def test_what_is_only_unseen_is_kept_and_a_person_told(
    world: World, asks: Asks, unseen: Verdict
) -> None:
    gates = asks(unseen)
    told: list[tuple[str, str]] = []
    evidence = gate_and_promote(
        world.tools(notify=lambda kind, text, **_: told.append((kind, text)))
    )

    assert evidence.exit_code == ExitCode.UNREACHABLE
    assert "A person is needed" in evidence.conclusion
    assert "live_metrics (inconclusive)" in evidence.conclusion
    assert world.platform.serving(PRODUCTION) == (builds(world)[1], 4, 4)
    assert ("kept", evidence.conclusion) in told
    assert kinds(world)[-1] == "kept"
    assert len(gates.asked) > 5
    assert not passed_there(world)

    # The next run asks again, and does not call it well before it is.
    asks(unseen)
    assert gate_and_promote(world.tools()).exit_code == ExitCode.UNREACHABLE
    asks(PASSED)
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    assert passed_there(world)


def test_a_kept_build_is_rolled_back_when_it_fails_later(world: World, asks: Asks) -> None:
    asks(NO_DATA)
    gate_and_promote(world.tools())
    asks(Verdict(outcome=Outcome.FAIL, reason=""))
    assert gate_and_promote(world.tools()).exit_code == ExitCode.ROLLED_BACK
    assert world.platform.serving(PRODUCTION) == (builds(world)[0], 4, 4)


@pytest.mark.parametrize(
    ("verdict", "second", "policy", "kept"),
    [
        (BAD, "live_metrics", {}, False),
        (BAD, "live_metrics", {"inconclusive.seen": "keep"}, True),
        (BAD, "error_rate", {"inconclusive.gates.error_rate": "keep"}, True),
        (FEW, "live_metrics", {"inconclusive.gates.live_metrics": "roll_back"}, False),
        (NO_DATA, "own_gate", {"inconclusive.unseen": "roll_back"}, False),
        (NO_DATA, "own_gate", {}, True),
        (NO_DATA, "inference", {}, False),
        (NO_DATA, "smoke", {}, True),
    ],
)
def test_the_policy_says_of_each_gate_what_is_kept(
    world: World, asks: Asks, verdict: Verdict, second: str, policy: dict[str, str], kept: bool
) -> None:
    asks(verdict, second=second)
    world.overrides |= policy
    evidence = gate_and_promote(world.tools())
    code = ExitCode.UNREACHABLE if kept else ExitCode.ROLLED_BACK
    assert evidence.exit_code == code, evidence.conclusion
    assert world.platform.serving(PRODUCTION) == (builds(world)[kept], 4, 4)


def test_a_trigger_that_fires_while_gates_are_held_rolls_back(world: World, asks: Asks) -> None:
    gates = asks(NO_DATA)

    def down(_seconds: float) -> ProbeSample:
        bad = 10 if gates.asked else 0
        answered = (0.1,) * (10 - bad)
        return ProbeSample(total=10, failures=bad, latencies_seconds=answered, healthy=True)

    world.probes = down
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "complete outage" in evidence.conclusion


def test_a_run_that_goes_on_with_a_kept_one_calls_it_no_pass(world: World, asks: Asks) -> None:
    asks(NO_DATA)
    healthy = world.probes

    def interrupted(seconds: float) -> ProbeSample:
        entry = world.journal()
        if entry is not None and entry.phase is Phase.WATCH:
            world.probes = healthy
            raise KeyboardInterrupt
        sample: ProbeSample = healthy(seconds)
        return sample

    world.probes = interrupted
    assert gate_and_promote(world.tools()).exit_code == ExitCode.INTERRUPTED
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.UNREACHABLE
    assert "A person is needed" in evidence.conclusion
