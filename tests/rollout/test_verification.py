"""Verification: the verdicts of the gates without their process, and an end when it cannot work."""

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster.fixtures import eventually
from rich.console import Console
from support.simulated import ALL_STABLE, FakeClock
from support.stub_server import Stub, serving
from support.traffic import CANARY
from support.world import BY_TRAFFIC, PRODUCTION, World, builds, changes, kinds, left

from vllm_rollout.cli.console import LiveReporter
from vllm_rollout.cli.run_tools import new_run_tools
from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Target
from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.model.evidence import GateRun
from vllm_rollout.next_command import options_of_this_run
from vllm_rollout.platform.base import PathErrors
from vllm_rollout.platform.local import LocalPlatform
from vllm_rollout.report.formatting import short_title
from vllm_rollout.rollout.engine import gate_and_promote, manual_rollback, watch_rollback
from vllm_rollout.rollout.evidence_store import PassedRevisions
from vllm_rollout.rollout.gates import GateRunner
from vllm_rollout.rollout.run import SystemClock
from vllm_rollout.rollout.verification import VERIFY_GATES, CannotVerifyError, verify
from vllm_rollout.settings import Settings, load_settings

QUICK_GATES = {
    "environments.development.gates.health.timeout": "500ms",
    "environments.development.gates.inference.timeout": "500ms",
}


# ------------------------------------------------- on real processes


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Production on this machine: revision 1 and then 2, each with evidence."""
    state = tmp_path_factory.mktemp("local") / "state"
    settings = load_settings(
        platform="local",
        overrides=QUICK_GATES | {"local.state": str(state), "environments.production.replicas": 1},
    )
    platform = settings.reader()
    assert isinstance(platform, LocalPlatform)
    command = ["{python}", "-m", "vllm_rollout.simulator", "--port", "{port}", "--model", "{model}"]
    try:
        for revision in ("one", "two"):
            values = {"command": command, "model_revision": revision}
            build = platform.build(PRODUCTION, values)
            target = Target(build=build, values=values, replicas=1, capacity=1)
            made = platform.apply(
                PRODUCTION, target, description=revision, timeout=timedelta(minutes=1)
            )
            PassedRevisions(platform.store).passed(PRODUCTION, made, "sha256:" + "0" * 64)
        yield settings
    finally:
        platform.stop_all()


def words(run: GateRun) -> list[Any]:
    """What the gates found, without the times that answers took."""
    return [
        (
            gate.gate,
            [(v.outcome, re.sub(r"\d[\d.e-]* s", "T", v.reason), v.remedy) for v in gate.verdicts],
            gate.error,
            gate.unreachable,
            [attachment.title for attachment in gate.attachments],
        )
        for gate in run.gates
    ]


@pytest.mark.parametrize("fault", ["", "dead", "hang"])
def test_a_verification_finds_what_the_gates_find(
    local: Settings, tmp_path: Path, fault: str
) -> None:
    (replica,) = local.reader().replicas(PRODUCTION)
    dials = f"{replica.address}/simulator/dials"
    # Only what hangs is given up soon: a machine may be busy.
    overrides = (QUICK_GATES if fault else {}) | {
        "local.state": str(local.policy.local.state),
        "environments.production.replicas": 1,
    }
    changes = [f"{key}={value}" for key, value in overrides.items()]
    runner = GateRunner(
        options=["--platform=local", *(f"--policy-set={change}" for change in changes)],
        on_event=lambda _kind, _text: None,
    )
    if fault:
        httpx.patch(dials, json={fault: True}).raise_for_status()
    try:
        if fault == "dead":  # the router stops sending to it, at a moment of its own
            eventually(lambda: not local.reader().replicas(PRODUCTION)[0].ready)
        by_gates = runner.run(PRODUCTION, tmp_path, only=VERIFY_GATES)
        with options_of_this_run([("--platform", "local"), *(("--set", c) for c in changes)]):
            found = verify(
                load_settings(platform="local", overrides=overrides), PRODUCTION, SystemClock()
            )
    finally:
        if fault:
            httpx.patch(dials, json={fault: False}).raise_for_status()

    assert words(found) == words(by_gates)
    assert [gate.title for gate in found.gates if gate.gate == "inference"] == [
        short_title(gate.title) for gate in by_gates.gates if gate.gate == "inference"
    ]
    assert found.outcome is (Outcome.FAIL if fault else Outcome.PASS)
    for name in ("revision", "build", "images", "base_url", "platform", "policy_digest", "changed"):
        assert getattr(found, name) == getattr(by_gates, name), name


def test_a_rollback_is_verified_where_no_report_can_be_written(
    local: Settings, tmp_path: Path
) -> None:
    (tmp_path / "reports").write_text("no folder, and nothing can be written below it")
    with LiveReporter(Console(quiet=True)) as reporter:
        tools = new_run_tools(
            replace(local, report_dir=tmp_path / "reports"),
            source=PRODUCTION,
            target=PRODUCTION,
            gate_options=[
                "--platform=local",
                f"--policy-set=local.state={local.policy.local.state}",
            ],
            reason="a test",
            reporter=reporter,
        )
        evidence = manual_rollback(tools, to=1, reason="customers complain")

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert any("has revision 1 again, verified" in step.title for step in evidence.steps)


# ------------------------------------------------- what goes wrong with the checker or the path


class Trickle(BaseHTTPRequestHandler):
    """A server whose answers never end: a header, and another one, and so on."""

    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not self.server.over.wait(0.05):  # type: ignore[attr-defined]
            try:
                self.wfile.write(b"X-More: yes\r\n")
            except OSError:
                return

    do_POST = do_GET  # noqa: N815 - the name is http.server's

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def trickling() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Trickle) as server:
        server.over = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.over.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Settings]:
    """Settings of the world, whose production answers at the given address."""

    def settings(url: str) -> Settings:
        monkeypatch.setattr(world.platform, "base_url", lambda _deployment: url)
        world.overrides |= QUICK_GATES
        return world.tools().observer.settings

    return settings


def test_an_answer_that_never_ends_is_a_fail_in_the_gates_time(
    settings: Callable[[str], Settings], trickling: str
) -> None:
    run = verify(settings(trickling), PRODUCTION, FakeClock())

    of_inference = [Outcome.INCONCLUSIVE] * 2  # not asked: nobody gets a token
    assert [gate.outcome for gate in run.gates] == [Outcome.PASS, Outcome.FAIL, *of_inference]
    assert "no complete answer within 0.5 s" in run.gates[1].verdicts[-1].reason


def test_where_nothing_answers_it_says_so_and_fails_nothing(
    settings: Callable[[str], Settings],
) -> None:
    run = verify(settings("http://127.0.0.1:9"), PRODUCTION, FakeClock())

    assert (run.outcome, run.unreachable) == (Outcome.INCONCLUSIVE, "http://127.0.0.1:9")


def test_errors_of_the_path_are_not_held_against_the_deployment(
    settings: Callable[[str], Settings],
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    trickling: str,
) -> None:
    counted = count()

    def path_errors(_deployment: object) -> PathErrors:
        return PathErrors(count=next(counted), what="503", address="the API server")

    monkeypatch.setattr(world.platform, "path_errors", path_errors)

    run = verify(settings(trickling), PRODUCTION, FakeClock())

    assert (run.outcome, run.unreachable) == (Outcome.INCONCLUSIVE, "the API server")


def test_a_server_that_asks_for_another_key_is_not_verified(
    settings: Callable[[str], Settings],
) -> None:
    with serving(Stub(status=401)) as stub:
        with pytest.raises(CannotVerifyError, match=r"VLLM_ROLLOUT_API_KEY is not set$") as found:
            verify(settings(stub.url), PRODUCTION, FakeClock())
        assert found.value.remedy.count("Put the server's key into") == 1
        assert "VLLM_ROLLOUT_API_KEY. Check that it serves: vllm-rollout" in found.value.remedy
        stub.status = 500
        assert verify(settings(stub.url), PRODUCTION, FakeClock()).outcome is Outcome.FAIL


@pytest.mark.parametrize("error", [OSError("disk I/O error"), RolloutError("no such table")])
def test_a_checker_that_does_not_work_is_no_verdict_unless_a_fail_was_seen(
    local: Settings,
    settings: Callable[[str], Settings],
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    trickling: str,
    error: Exception,
) -> None:
    def broken(_deployment: object) -> None:
        raise error

    monkeypatch.setattr(world.platform, "replicas", broken)

    with pytest.raises(CannotVerifyError, match=f"pods: {type(error).__name__}: .*{error}"):
        verify(settings(local.reader().base_url(PRODUCTION)), PRODUCTION, FakeClock())
    assert verify(settings(trickling), PRODUCTION, FakeClock()).outcome is Outcome.FAIL


def test_replicas_that_are_not_ready_are_a_fail_whatever_the_diagnosis_does(
    settings: Callable[[str], Settings], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_deployment: object) -> None:
        raise OSError("events")

    world.platform.unready[PRODUCTION.release] = 2
    monkeypatch.setattr(world.platform, "symptoms", broken)

    run = verify(settings("http://127.0.0.1:9"), PRODUCTION, FakeClock())

    assert run.gates[0].outcome is Outcome.FAIL


def test_replicas_health_and_a_token_are_verified_whatever_gates_are_on(
    local: Settings, settings: Callable[[str], Settings], world: World, trickling: str
) -> None:
    off = dict.fromkeys(("pods", "health", "inference"), False)
    world.overrides |= {f"environments.production.gates.{gate}": off[gate] for gate in off}

    run = verify(settings(local.reader().base_url(PRODUCTION)), PRODUCTION, FakeClock())
    assert (run.outcome, [gate.gate for gate in run.gates]) == (Outcome.PASS, ["pods", "health"])
    world.overrides["watch.probe_timeout"] = "500ms"
    assert verify(settings(trickling), PRODUCTION, FakeClock()).outcome is Outcome.FAIL


# ------------------------------------------------- a rollback that could not be verified


@pytest.fixture
def unverified(world: World) -> World:
    """A world in which production's gates fail and no verification works."""

    def cannot(_deployment: object) -> GateRun:
        raise CannotVerifyError("the checker is broken", remedy="See for yourself.")

    world.gates.outcomes["production"] = Outcome.FAIL
    world.gates.verify = cannot  # type: ignore[method-assign]
    return world


def works_again(world: World) -> None:
    del world.gates.verify


def test_a_checker_that_cannot_run_is_rolled_back_and_not_verified(unverified: World) -> None:
    told: list[tuple[str, str]] = []
    tools = unverified.tools(notify=lambda kind, text, **_: told.append((kind, text)))

    evidence = gate_and_promote(tools)

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "not verified: the checker is broken. See for yourself." in evidence.conclusion
    assert "does not serve" not in evidence.conclusion
    assert "ROLLED BACK, NOT VERIFIED" in [step.title for step in evidence.steps]
    assert told[-1] == ("rolled-back", evidence.conclusion)
    assert kinds(unverified)[-1] == "rolled-back"
    assert unverified.platform.serving(PRODUCTION) == (builds(unverified)[0], 4, 4)


def test_the_next_run_verifies_before_it_promotes(unverified: World) -> None:
    gate_and_promote(unverified.tools())
    unverified.gates.outcomes.clear()
    before = list(changes(unverified))

    again = gate_and_promote(unverified.tools())
    assert again.exit_code == ExitCode.ROLLED_BACK
    assert "not verified" in again.conclusion
    assert changes(unverified)[len(before) :] == ["rollback production 1"]

    works_again(unverified)
    assert gate_and_promote(unverified.tools(again="Ada")).exit_code == ExitCode.OK
    assert not left(unverified).unfinished


def test_by_hand_it_is_not_called_verified(unverified: World) -> None:
    unverified.platform.deploy(PRODUCTION, {"version": 3}, replicas=4)
    tools = unverified.tools(source=PRODUCTION)

    evidence = manual_rollback(tools, to=1, reason="customers complain")

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "not verified" in evidence.conclusion


def test_a_canary_stays_until_the_release_is_verified(unverified: World) -> None:
    unverified.overrides |= BY_TRAFFIC
    gate_and_promote(unverified.tools())
    assert unverified.platform.weights(PRODUCTION) == ALL_STABLE
    assert unverified.platform.ready(CANARY) == 4

    works_again(unverified)
    unverified.gates.outcomes["staging"] = Outcome.FAIL
    assert gate_and_promote(unverified.tools()).exit_code == ExitCode.GATE_FAILED
    assert unverified.platform.serving(CANARY) is None
    assert not left(unverified).unfinished


def test_a_watch_over_it_goes_on_and_calls_for_a_person(unverified: World) -> None:
    gate_and_promote(unverified.tools())
    assert left(unverified).unfinished
    assert not left(unverified).in_progress
    revision = unverified.platform.history(PRODUCTION)[-1].number

    tools = unverified.tools(source=PRODUCTION)
    evidence = watch_rollback(tools, reason="an outage", revision=revision)

    assert evidence.exit_code == ExitCode.NEEDS_PERSON
    assert "it was brought back itself" in evidence.conclusion
