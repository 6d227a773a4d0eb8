"""The collaborators of one run, put together."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.evidence import GateRun
from vllm_rollout.platform.writer import writer_of
from vllm_rollout.rollout.audit_log import AuditLog
from vllm_rollout.rollout.clock import Clock
from vllm_rollout.rollout.gate_runner import GateRunner
from vllm_rollout.rollout.gates import Gates
from vllm_rollout.rollout.journal import Journal
from vllm_rollout.rollout.lease import TTL
from vllm_rollout.rollout.leased_releases import LeasedReleases
from vllm_rollout.rollout.observer import DeploymentObserver
from vllm_rollout.rollout.run import Run
from vllm_rollout.rollout.run_log import Reporter, RunLog
from vllm_rollout.rollout.verification import verify
from vllm_rollout.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTools:
    """One run and its four collaborators.

    Only the functions that conduct a whole rollout take it; all others take the parts they need.
    """

    run: Run
    log: RunLog
    releases: LeasedReleases
    observer: DeploymentObserver
    gates: Gates


def assemble(
    run: Run,
    settings: Settings,
    *,
    clock: Clock,
    reporter: Reporter,
    runner: GateRunner,
    verifier: Callable[[Deployment], GateRun] | None = None,
    notify: Callable[[str, str], None] = lambda _kind, _text: None,
    undelivered: Callable[[], list[str]] = list,
    lease_ttl: timedelta = TTL,
) -> RunTools:
    """Return the collaborators of `run` on the platform of `settings`.

    `notify` and `undelivered` are as in `RunLog`; `verifier` is `verify` by default.
    """
    platform = writer_of(settings.reader())
    log = RunLog(
        run=run,
        clock=clock,
        reporter=reporter,
        audit=AuditLog(platform.store),
        notify=notify,
        undelivered=undelivered,
    )
    observer = DeploymentObserver(run=run, settings=settings, log=log)
    return RunTools(
        run=run,
        log=log,
        releases=LeasedReleases(
            run=run,
            platform=platform,
            journal=Journal(platform.store, run.target.model),
            log=log,
            lease_ttl=lease_ttl,
        ),
        observer=observer,
        gates=Gates(
            run=run,
            platform=platform,
            runner=runner,
            verifier=verifier or (lambda deployment: verify(settings, deployment, clock)),
            settings_for=observer.settings_for,
            log=log,
        ),
    )
