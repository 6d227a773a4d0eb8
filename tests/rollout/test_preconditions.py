"""What a promotion takes besides passing gates, and what an emergency passes over."""

from dataclasses import replace
from datetime import timedelta
from unittest.mock import Mock

import pytest
from support.world import (
    DEVELOPMENT,
    MODEL,
    RAMP,
    SIGN_OFF,
    STAGING,
    Killed,
    World,
    decide,
    failing_when,
    gates_run,
)

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.soak import soak_state
from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.model.errors import ExitCode, UnreachableError
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.model.request_counts import Uptime
from vllm_rollout.observe.probe import not_of_the_build
from vllm_rollout.policy import Soak
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.evidence_store import find_evidence
from vllm_rollout.rollout.leased_run import RunTools
from vllm_rollout.rollout.observer import DeploymentObserver
from vllm_rollout.rollout.run import Emergency
from vllm_rollout.rollout.soak_samples import keep_sample, sample_of, stretches_of

# ------------------------------------------------- order


def test_a_build_that_skipped_a_stage_is_refused_before_any_load(world: World) -> None:
    world.platform.deploy(STAGING, {"version": 3})
    ran = gates_run(world)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "has no passing evidence of development" in evidence.conclusion
    assert f"gate-and-promote {MODEL} --to staging" in evidence.conclusion
    assert (ran, world.platform.calls) == ([], [])


# ------------------------------------------------- emergency


def test_an_emergency_passes_over_time_and_people_and_is_recorded(world: World) -> None:
    del world.overrides[SIGN_OFF]
    world.platform.deploy(STAGING, {"version": 3})
    world.overrides |= {
        "environments.staging.soak.minimum": "40h",
        "windows.days": ["sunday"],
        "windows.on_call.command": ["false"],
    }
    emergency = Emergency(by="Ada", reason="security fix")

    evidence = gate_and_promote(world.tools(emergency=emergency))

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert world.platform.calls == RAMP
    assert evidence.override is not None
    assert (evidence.override.by, evidence.override.reason) == ("Ada", "security fix")
    over = " | ".join(evidence.override.passed_over)
    for what in ("development", "soak", "windows", "on call", "signed off"):
        assert what in over
    chain = AuditLog(world.platform.store).of(MODEL)
    (entry,) = [d for d in chain if d.kind is DecisionKind.OVERRIDE]
    assert entry.who == "Ada (as ada)"
    assert "security fix; passed over: " in entry.why
    kept = find_evidence(world.platform.store, MODEL, evidence.digest)
    assert kept.override == evidence.override


def test_an_emergency_does_not_pass_over_gates_the_watch_or_a_rejection(world: World) -> None:
    def emergency() -> RunTools:
        return world.tools(emergency=Emergency(by="Ada", reason="security fix"))

    for outcome, code in ((Outcome.FAIL, 1), (Outcome.INCONCLUSIVE, 3)):
        world.gates.outcomes["staging"] = outcome
        assert gate_and_promote(emergency()).exit_code == code
    world.gates.outcomes.clear()
    assert world.platform.calls == []

    world.probes = failing_when(lambda: world.platform.calls)
    assert gate_and_promote(emergency()).exit_code == ExitCode.ROLLED_BACK

    del world.overrides[SIGN_OFF]
    pending = gate_and_promote(world.tools(again="Ada"))
    decide(world, pending, approved=False)
    assert gate_and_promote(emergency()).exit_code == ExitCode.GATE_FAILED


# ------------------------------------------------- soak


def look(world: World, rules: Soak, *, ready: bool = True, restarts: int = 0) -> None:
    revision = world.platform.releases[STAGING.release][-1]
    replicas = [Replica(name="r0", phase="Running", ready=ready, restarts=restarts)]
    probes = ProbeSample(total=1, failures=0, latencies_seconds=(0.1,), healthy=True)
    sample = sample_of(world.clock.now(), replicas, 1, probes)
    keep_sample(world.platform.store, STAGING, revision, sample, rules)


def test_a_soak_that_nobody_watched_is_not_over_and_says_what_to_run(world: World) -> None:
    del world.overrides["environments.staging.soak.observed_by"]
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "the soak is not over" in evidence.conclusion
    assert f"vllm-rollout soak {MODEL} -e staging" in evidence.conclusion
    assert world.platform.calls == []


@pytest.mark.parametrize("broken", ["", "restart", "unready", "gap"])
def test_days_of_samples_stay_small_and_a_break_begins_the_soak_anew(
    world: World, broken: str
) -> None:
    del world.overrides["environments.staging.soak.observed_by"]
    history = world.platform.releases[STAGING.release]
    history[-1] = replace(history[-1], created=world.clock.now())
    rules = world.tools().run.policy.environments["staging"].soak
    assert rules is not None
    restarts = 0
    for minutes in range(0, 25 * 60, 5):
        if minutes == 12 * 60 and broken == "restart":
            restarts = 1
        if not (broken == "gap" and 12 * 60 <= minutes < 15 * 60):
            look(
                world,
                rules,
                restarts=restarts,
                ready=not (broken == "unready" and minutes in (12 * 60, 12 * 60 + 5)),
            )
        world.clock.sleep(timedelta(minutes=5))
    world.overrides["windows.enforce"] = False

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == (ExitCode.INCONCLUSIVE if broken else ExitCode.OK)
    if broken:
        assert "are left" in evidence.conclusion
    (key,) = world.platform.store.keys("soak/llama-2-7b-staging/")
    entry = world.platform.store.read(key)
    assert entry is not None
    assert len(entry.value["stretches"]) <= 3


def test_a_promotion_begins_the_soak_of_what_it_made(world: World) -> None:
    del world.overrides["environments.staging.soak.observed_by"]
    build = world.platform.deploy(DEVELOPMENT, {"version": 4})
    tools = world.tools(source=DEVELOPMENT, target=STAGING)
    assert gate_and_promote(tools).exit_code == ExitCode.OK
    newest = world.platform.releases[STAGING.release][-1]
    assert newest.build == build
    assert world.platform.store.read(f"soak/{STAGING.release}/{newest.number:08d}") is not None


def test_scrapes_show_a_soak_as_samples_do(world: World) -> None:
    rules = world.tools().run.policy.environments["staging"].soak
    assert rules is not None
    began = world.clock.now()
    at = [began.timestamp() + minutes * 60 for minutes in range(60)]
    ups = [1 if minutes in (30, 31, 32, 33) else 2 for minutes in range(60)]
    uptime = Uptime(moments=tuple(zip(at, ups, strict=True)), restarts=(at[50],), gaps=())
    stretches = stretches_of(uptime, 2, rules)
    assert [(s.healthy, s.restarted) for s in stretches] == [
        (True, False), (False, False), (True, False), (True, True),
    ]  # fmt: skip
    state = soak_state(stretches, began=began, now=began + timedelta(hours=1), rules=rules)
    assert state.soaked == timedelta(minutes=10)
    assert soak_state([], began=began, now=began, rules=rules).seen is False


# ------------------------------------------------- windows


def test_waiting_for_a_window_holds_nothing_and_gates_afterwards(world: World) -> None:
    world.clock.seconds = 2 * 24 * 3600  # Friday
    told: list[str] = []
    messages: list[tuple[str, str]] = []
    tools = world.tools(notify=lambda kind, text, **_: messages.append((kind, text)))
    tools.log.reporter.progress = told.append  # type: ignore[method-assign]
    leases: list[bool] = []
    world.clock.meanwhile = lambda: leases.append(bool(world.platform.store.leases))
    begun: list[str] = []
    world.gates.during = lambda d: begun.append(f"{world.clock.now():%A %H:%M} {d.environment}")

    evidence = gate_and_promote(tools, wait_for_window=True)

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert "friday is not a deployment day" in told[0]
    assert "opens Monday 2026-11-23 09:00 UTC, in 71h" in told[0]
    assert begun[0] == "Monday 09:00 staging"
    first, *later = messages
    assert first[0] == "waiting"
    assert first[1].endswith("opens Monday 2026-11-23 09:00 UTC")
    assert [kind for kind, _ in later] == ["promotion", "promoted"]
    waited = sum("waiting for a deployment window" in line for line in told)
    assert waited > 100
    assert not any(leases[:waited])


def test_what_a_killed_run_left_is_undone_at_once_and_not_in_a_window(world: World) -> None:
    world.platform.kill_at = "apply production 2/4"
    with pytest.raises(Killed):
        gate_and_promote(world.tools())
    world.clock.seconds = 2 * 24 * 3600
    evidence = gate_and_promote(world.tools(), wait_for_window=True)
    assert "rollback production 1" in world.platform.calls
    assert world.clock.seconds < 3 * 24 * 3600
    assert "friday" in evidence.conclusion


@pytest.mark.parametrize(
    ("on_call", "said"),
    [
        ({"command": ["true"]}, ""),
        ({"command": ["false"]}, "nobody is on call: 'false' ended with 1"),
        ({"command": ["/no/such/program"]}, "whether anybody is on call is unknown"),
        ({"command": ["sleep", "60"], "timeout": "100ms"}, "did not end within"),
        ({"url": "http://127.0.0.1:9/"}, "whether anybody is on call is unknown"),
        ({"command": ["true"], "url": "http://127.0.0.1:9/"}, "unknown"),
    ],
)
def test_somebody_must_be_on_call_where_the_policy_asks(
    world: World, on_call: dict[str, object], said: str
) -> None:
    world.overrides |= {f"windows.on_call.{key}": value for key, value in on_call.items()}
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == (ExitCode.INCONCLUSIVE if said else ExitCode.OK)
    assert said in evidence.conclusion


# ------------------------------------------------- what is needed later


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (401, ExitCode.INCONCLUSIVE, "environment variable VLLM_ROLLOUT_API_KEY"),
        (403, ExitCode.INCONCLUSIVE, "(HTTP 403), and VLLM_ROLLOUT_API_KEY is not set"),
        (307, ExitCode.INCONCLUSIVE, "answers 307"),
        (
            UnreachableError("refused", address="http://router"),
            ExitCode.UNREACHABLE,
            "url",
        ),
        (500, ExitCode.OK, "Promoted"),  # what serves may be broken: the new build may repair it
    ],
)
def test_the_users_way_in_is_tried_before_production_changes(
    world: World, monkeypatch: pytest.MonkeyPatch, answer: int | Exception, code: int, said: str
) -> None:
    def refusal(observer: DeploymentObserver, deployment: Deployment) -> object:
        if isinstance(answer, Exception):
            raise answer
        with observer.settings.client("http://router", deployment) as client:
            return not_of_the_build(client, answer, "")

    monkeypatch.setattr(DeploymentObserver, "refusal_at_users_address", refusal)
    ran = gates_run(world)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == code
    assert said in evidence.conclusion
    if code != ExitCode.OK:
        assert (ran, world.platform.calls) == ([], [])


def test_prometheus_must_answer_before_production_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = UnreachableError("Prometheus does not answer", address="http://prometheus")
    monkeypatch.setattr(DeploymentObserver, "reach_metrics", Mock(side_effect=down))
    ran = gates_run(world)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.UNREACHABLE
    assert (ran, world.platform.calls) == ([], [])


def test_the_registrys_command_must_be_there_before_production_changes(world: World) -> None:
    world.overrides |= {"model_registry.register_command": ["/no/such/program"]}
    ran = gates_run(world)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "register_command is not installed here: /no/such/program" in evidence.conclusion
    assert (ran, world.platform.calls) == ([], [])


def test_a_reports_folder_must_be_writable_before_production_changes(world: World) -> None:
    tools = world.tools()
    file = world.tmp_path / "file"
    file.touch()
    tools = replace(tools, run=replace(tools.run, folder=file / "run"))

    evidence = gate_and_promote(tools)

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "name another folder with --report-dir" in evidence.conclusion
    assert world.platform.calls == []
