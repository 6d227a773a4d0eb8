"""Rollouts in processes of their own on a real platform, stopped by a signal at a chosen call.

Only the target is real. Staging is a revision that is said to stand there, and gates and probes
say what the test wants: what is tested is what becomes of releases, journal and lease.
A process is forked from the test's, whose imports are done.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.crashing import Calls, When, Wrapped
from support.forked import forked
from support.scripted_observer import scripted_observer
from support.world import STAGING, ScriptedGates, healthy, passed_before, scripted_tools

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Deployment, Revision, RevisionStatus
from vllm_rollout.model.observation import Observation
from vllm_rollout.platform.base import ConflictError, Route
from vllm_rollout.policy import load_policy
from vllm_rollout.rollout import run as rollout
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.observer import DeploymentObserver
from vllm_rollout.rollout.run import SystemClock
from vllm_rollout.settings import Settings

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

TTL = timedelta(seconds=6)
POLICY: dict[str, Any] = {
    "environments.production.replicas": 2,
    "environments.staging.soak": False,
    "environments.staging.sign_off": False,
    "windows.enforce": False,
    "ramp": [{"replicas": 1, "hold": "0s"}, {"share": "100%", "hold": "0s"}],
    "watch": {
        "duration": "1s",
        "interval": "500ms",
        "slo": {"within": "1s"},
        "error_spike": {"within": "1s", "for": "500ms"},
    },
}
BY_TRAFFIC: dict[str, Any] = {
    "canary": {"by": "traffic", "latency": False, "error_rate": False},
    "ramp": [{"share": "50%", "hold": "0s"}, {"share": "100%", "hold": "0s"}],
}
"""The same, by traffic weight, without time to compare anything."""
_PATIENCE_SECONDS = 240.0

GOOD = [
    "write rollout/llama-2-7b",  # about to begin
    "write rollout/llama-2-7b",  # 1 of 2 replicas
    "apply production/llama-2-7b",
    "write rollout/llama-2-7b",  # 2 of 2 replicas
    "apply production/llama-2-7b",
    "write rollout/llama-2-7b",  # gates
    "write rollout/llama-2-7b",  # watch
    "write rollout/llama-2-7b",  # done
]
_JOURNAL, _PRODUCTION = GOOD[0], "production/llama-2-7b"
GOOD_BY_TRAFFIC = [
    _JOURNAL,  # about to begin
    _JOURNAL,  # 1 canary replica
    f"apply the canary of {_PRODUCTION}",
    _JOURNAL,  # 50% of the traffic
    f"set_weights {_PRODUCTION}",
    _JOURNAL,  # 2 canary replicas
    f"apply the canary of {_PRODUCTION}",
    _JOURNAL,  # 100% of the traffic
    f"set_weights {_PRODUCTION}",
    _JOURNAL,  # all replicas of the release
    f"apply {_PRODUCTION}",
    _JOURNAL,  # the traffic goes back
    f"set_weights {_PRODUCTION}",
    f"uninstall the canary of {_PRODUCTION}",
    *[_JOURNAL] * 3,  # gates, watch, done
]
BAD = [*GOOD[:6], "write rollout/llama-2-7b", "rollback production/llama-2-7b", GOOD[-1]]
"""The gates of production fail: after the sixth call it goes back."""


def cells(calls: list[str], start: int = 0, *, besides: Iterable[str] = ()) -> "list[ParameterSet]":
    """Before the first call, and after each: what a test of kills takes as `at` and `when`.

    Which call it is is all the same to SIGKILL: `tests/rollout/test_crashes.py` stops at every one.
    So one cell of each kind of call is for every day, unless the kind is among `besides`.
    """
    found = [] if start else [pytest.param(0, "before", marks=pytest.mark.exhaustive)]
    seen = {_kind(call) for call in besides}
    for at in range(start, len(calls)):
        new = at > 0 and _kind(calls[at]) not in seen  # with the first call nothing is done yet
        found.append(pytest.param(at, "after", marks=[] if new else pytest.mark.exhaustive))
        seen |= {_kind(calls[at])} if new else set()
    return found


def _kind(call: str) -> str:
    """Which call it is, without what it is about."""
    return call.rpartition(" ")[0]


def is_journal_or_change(name: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a call writes the journal or changes a release."""
    journal = name == "write" and str(arguments[0]).startswith("rollout/")
    return journal or name in ("apply", "rollback", "uninstall", "set_weights")


_STAGED = datetime.now(UTC) - timedelta(days=2)
"""One time for all runs of a test, which are forks of this process."""


class _WithStaging:
    """A real platform on which a build is said to stand in staging."""

    def __init__(self, real: Any, values: Mapping[str, Any], target: Deployment) -> None:
        self._real, self._values, self._target = real, dict(values), target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def preflight(self, *_: object, **__: object) -> None:
        return None

    def route(self, deployment: Deployment) -> Route:
        return Route(url=f"http://{deployment.release}")

    def history(self, deployment: Deployment) -> list[Revision]:
        if deployment.environment != STAGING.environment:
            return list(self._real.history(deployment))
        return [self.gated]

    @property
    def gated(self) -> Revision:
        """The revision that is said to stand in staging, and to have stood in development."""
        return Revision(
            number=1,
            build=self._real.build(self._target, self._values),
            status=RevisionStatus.DEPLOYED,
            created=_STAGED,
            description="",
            replicas=1,
            capacity=1,
        )

    def values(self, deployment: Deployment, revision: int) -> dict[str, Any]:
        if deployment.environment != STAGING.environment:
            return dict(self._real.values(deployment, revision))
        return self._values


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a run is stopped, and by what."""

    at: int
    when: When = "before"
    by: signal.Signals = signal.SIGKILL


@dataclass(slots=True)
class Run:
    """A run in a process of its own."""

    pid: int
    folder: Path
    _status: int | None = None

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._status is None:
            assert time.monotonic() < deadline, f"no end of run {self.pid}: {self.said}"
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        return self._status

    def wait_until_frozen(self) -> None:
        """Return when it was stopped by SIGSTOP."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), self.said

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def said(self) -> str:
        """Its steps and its conclusion, or its traceback."""
        file = self.folder / f"said-{self.pid}"
        return file.read_text() if file.exists() else ""


@dataclass(frozen=True, slots=True)
class Runs:
    """Makes runs that bring builds to `target`; `connect` opens the platform in each process."""

    connect: Callable[[], Any]
    target: Deployment
    values: Callable[[int], dict[str, Any]]
    folder: Path
    by_traffic: bool = False
    deploy_timeout: str = "120s"
    in_hold: Callable[[], object] = lambda: None
    """What somebody does at the first observation of each run."""

    def start(self, version: int, *, bad: bool = False, stop: Stop | None = None) -> Run:
        """Start bringing build `version` to production; a `bad` one fails the gates there."""

        def report(text: str) -> None:
            (self.folder / f"said-{os.getpid()}").write_text(text)

        pid = forked(lambda: self._run(version, bad=bad, stop=stop), report)
        return Run(pid, self.folder)

    def finish(self, version: int, *, bad: bool = False) -> Run:
        """Run to the end."""
        run = self.start(version, bad=bad)
        run.wait()
        return run

    def calls(self, version: int, *, bad: bool = False) -> list[str]:
        """The calls at which a run may be stopped, of one that is not."""
        run = self.finish(version, bad=bad)
        return (self.folder / f"calls-{run.pid}").read_text().splitlines()

    def _run(self, version: int, *, bad: bool, stop: Stop | None) -> int:
        calls = Calls(
            lambda: os.kill(os.getpid(), stop.by if stop else signal.SIGKILL),
            at=stop.at if stop else None,
            when=stop.when if stop else "before",
            counts=is_journal_or_change,
        )
        real = _WithStaging(self.connect(), self.values(version), self.target)
        platform: Any = Wrapped(real, calls)
        development = Deployment(self.target.model, "development", self.target.namespace)
        with suppress(ConflictError):  # a run beside this one notes the same
            passed_before(real.store, development, real.gated)
        overrides = POLICY | {"deploy_timeout": self.deploy_timeout}
        policy = load_policy(None, overrides=overrides | (BY_TRAFFIC if self.by_traffic else {}))
        clock = SystemClock()
        gates = ScriptedGates(platform, clock)
        gates.outcomes["production"] = Outcome.FAIL if bad else Outcome.PASS
        settings = Settings(policy=policy, platform=platform, base_url=None, report_dir=self.folder)
        run = rollout.Run(
            id=f"run-{os.getpid()}",
            source=Deployment(self.target.model, "staging", self.target.namespace),
            target=self.target,
            policy=policy,
            who="ada",
            reason="a test",
            folder=self.folder,
        )
        tools = scripted_tools(run, settings, gates, clock=clock, lease_ttl=TTL)
        deeds = iter([self.in_hold])

        def observe(looks: DeploymentObserver, deployment: Deployment) -> Observation:
            next(deeds, lambda: None)()
            return _all_well(looks, deployment)

        with scripted_observer(observe):
            evidence = gate_and_promote(tools)
        steps = [f"{step.title} {step.detail}".rstrip() for step in evidence.steps]
        (self.folder / f"said-{os.getpid()}").write_text("\n".join([*steps, evidence.conclusion]))
        (self.folder / f"calls-{os.getpid()}").write_text("\n".join(calls.names))
        return evidence.exit_code or 0


def _all_well(looks: DeploymentObserver, deployment: Deployment) -> Observation:
    replicas = looks.settings.reader().replicas(deployment)
    return Observation(probes=healthy(0.0), replicas=replicas)
