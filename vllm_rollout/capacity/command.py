"""`vllm-rollout capacity`."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vllm_rollout import __version__
from vllm_rollout.capacity.headroom import NO_WORD, capacity_found
from vllm_rollout.capacity.judge import conclude
from vllm_rollout.capacity.model import Capacity, NextProbe, Probe, SearchConfig, StopReason
from vllm_rollout.capacity.probing import send_probe
from vllm_rollout.capacity.question import expected_rate, goal_of, late_after, slos_of, steady
from vllm_rollout.capacity.rate_probe import Slos
from vllm_rollout.capacity.record import keep_capacity
from vllm_rollout.capacity.report import (
    CapacityReport,
    as_json,
    probe_line,
    probes_table,
    write_capacity,
)
from vllm_rollout.capacity.search import Steps, search
from vllm_rollout.capacity.settling import Settling
from vllm_rollout.cli import options
from vllm_rollout.cli.console import LiveReporter, make_console, show_table
from vllm_rollout.load.plan_from_policy import load_plan
from vllm_rollout.load.remote_generator import remotely
from vllm_rollout.model.deployment import Deployment, Revision
from vllm_rollout.model.errors import ExitCode, UsageError
from vllm_rollout.model.evidence import new_run_id
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_pods import LoadPods
from vllm_rollout.model.units import format_value, parse_rate, parse_share
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.platform.writer import writer_of
from vllm_rollout.policy import Policy
from vllm_rollout.report.render import update_index
from vllm_rollout.report.terminal import progress_line
from vllm_rollout.rollout.lease import hold
from vllm_rollout.rollout.run import SystemClock
from vllm_rollout.settings import Settings


@options.about_releases
def capacity_command(
    model: options.Model,
    environment: options.EnvironmentBeforeLast = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RATE",
            help="first rate (default: load_capacity.expected_rate, else load.rate)",
        ),
    ] = None,
    max_rate: Annotated[
        str | None,
        typer.Option(
            "--max-rate",
            metavar="RATE",
            help="never send more, e.g. 200/s (default: the policy's capacity.max_rate)",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="SHARE",
            help="relative width looked for, e.g. 10% (default: the policy's capacity.precision)",
        ),
    ] = None,
    probes: Annotated[
        int | None,
        typer.Option(
            "--probes",
            min=3,
            help="loads sent at most (default: the policy's capacity.most_probes)",
        ),
    ] = None,
    workers: options.Workers = None,
    load_in_cluster: options.LoadInCluster = False,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            help="where the deployment is reached from here (default: the platform's way)",
        ),
    ] = None,
    as_json_text: Annotated[
        bool, typer.Option("--json", help="print JSON, for programs; progress goes to stderr")
    ] = False,
    overload_live_traffic: Annotated[
        bool,
        typer.Option(
            "--overload-live-traffic",
            help="search in the last environment all the same: its users will be slowed down",
        ),
    ] = False,
    *,
    choice: options.Choice,
    report_dir: options.ReportDir = None,
) -> None:
    """Find the highest rate at which MODEL's SLOs hold, by loads of growing and narrowing rates.

    In --environment, by default the one before the last. The server is overloaded on purpose, for
    seconds at a time. Numbers are the policy's `capacity` block. Leaves capacity.html and
    capacity.json in reports/MODEL/RUN; the load gate reads the headroom from what was found.

    Exit codes: 0 at least the expected traffic, 1 less, 3 not known, 4 nothing answers, 130
    interrupted, with what was found by then.
    """
    settings = choice.settings(
        base_url=base_url,
        report_dir=report_dir,
        workers=workers,
        load_in_cluster=load_in_cluster,
        needs_platform=False,
    )
    deployment = settings.deployment(model, environment or settings.policy.order[-2:][0])
    settings = settings.at_home(deployment.environment)
    if deployment.environment == settings.policy.order[-1] and not overload_live_traffic:
        raise UsageError(
            f"{deployment.environment} serves users, and a capacity search overloads the server",
            remedy="Search in the environment before it, or pass --overload-live-traffic.",
        )
    policy = settings.policy.for_model(model)
    goal = goal_of(
        policy,
        deployment.environment,
        start_per_second=parse_rate(start) if start is not None else None,
        max_per_second=parse_rate(max_rate) if max_rate is not None else None,
        precision=parse_share(precision) if precision is not None else None,
        most_probes=probes,
    )
    console = make_console(stderr=True) if as_json_text else options.console
    report = _Run(settings, policy, deployment, goal, console).run_under_lease()
    page = write_capacity(report, settings.report_dir / model / report.run_id)
    unlisted = update_index(settings.report_dir)
    if as_json_text:
        options.say_json(as_json(report))
    show_table(console, probes_table(report))
    for line in (f"report: {page}", report.verdict.reason, report.verdict.remedy, unlisted):
        if line:
            console.print(line, soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(report.exit_code)


@dataclass(slots=True)
class _Run:
    """One search, from the first single request to its report."""

    settings: Settings
    policy: Policy
    deployment: Deployment
    goal: SearchConfig
    console: Console
    probes: list[Probe] = field(default_factory=list)

    def run_under_lease(self) -> CapacityReport:
        """Search, and keep what was found where the load gate looks for it.

        Raises:
            UnreachableError: nothing answers, before the first load.
        """
        started = datetime.now(UTC)
        environment = self.deployment.environment
        slos = slos_of(self.policy, environment)
        pods = self.settings.load_pods(self.deployment)
        plan = self._plan(pods)
        with self._alone(), self._client() as client:
            before = self._revision()
            settling = self._settling(client)
            problem = settling.begin()
            if problem:
                capacity = conclude(self.goal, (), StopReason.UNMEASURED, problem)
            else:
                capacity = self._search(plan, pods, slos, settling, before)
            finished = datetime.now(UTC)
            self._keep(capacity, before, finished)
        expected = expected_rate(self.policy, environment)
        verdict = capacity_found(
            capacity,
            expected_per_second=expected,
            requests=sum(probe.requests for probe in self.probes),
        )
        interrupted = capacity.ending is StopReason.INTERRUPTED
        return CapacityReport(
            run_id=new_run_id(started),
            suite_version=__version__,
            deployment=self.deployment,
            base_url=plan.base_url,
            revision=before.number if before else None,
            build=before.build if before else None,
            policy_digest=self.policy.digest,
            slos=slos,
            expected_per_second=expected,
            alone_seconds=settling.alone_seconds,
            started=started,
            finished=finished,
            probes=tuple(self.probes),
            capacity=capacity,
            verdict=verdict,
            exit_code=int(ExitCode.INTERRUPTED if interrupted else verdict.outcome.exit_code),
        )

    def _search(
        self,
        plan: LoadPlan,
        pods: LoadPods | None,
        slos: Slos,
        settling: Settling,
        before: Revision | None,
    ) -> Capacity:
        load = self.policy.environments[self.deployment.environment].load
        late_after_seconds = late_after(self.policy, self.deployment.environment, slos)
        with LiveReporter(self.console) as live, tempfile.TemporaryDirectory() as folder:

            def send(ask: NextProbe) -> Probe:
                number = len(self.probes) + 1
                work_dir = Path(folder) / str(number)
                work_dir.mkdir()
                what = f"load {number}, {ask.aim} {format_value(ask.per_second, '1/s')}"
                before = self.settings.path_errors(self.deployment)
                probe = send_probe(
                    replace(plan, seed=plan.seed + number),
                    ask,
                    slos=slos,
                    late_after_seconds=late_after_seconds,
                    load=load,
                    cores=None if pods else len(os.sched_getaffinity(0)),
                    start=remotely(pods) if pods else None,
                    work_dir=work_dir,
                    api_key=self.settings.api_key,
                    on_progress=lambda seen: live.progress(
                        f"{what}: {progress_line(seen, confidence=self.policy.confidence)}"
                    ),
                )
                problem = self.settings.path_errors(self.deployment).since(before)
                return probe.unless(str(problem)) if problem and probe.failures else probe

            steps = Steps(
                send=send,
                settle=settling.wait,
                changed=lambda: self._change(before),
                on_probe=lambda probe: live.gate(probe_line(probe)),
            )
            return search(self.goal, steps, self.probes)

    def _plan(self, pods: LoadPods | None) -> LoadPlan:
        url = self.settings.load_url_of(self.deployment, pods)
        plan = steady(load_plan(self.policy, self.deployment, base_url=url))
        return replace(plan, workers=self.settings.workers or plan.workers)

    def _settling(self, client: InferenceClient) -> Settling:
        load = self.policy.environments[self.deployment.environment].load
        return Settling(
            lambda: client.ask(
                load.prompt, max_tokens=load.max_tokens, timeout_seconds=load.timeout_seconds
            ),
            most_seconds=self.policy.capacity.settle_seconds,
        )

    def _client(self) -> InferenceClient:
        return self.settings.client(self.settings.url_of(self.deployment), self.deployment)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the model's lease: no rollout shall judge a server that is overloaded here."""
        if self.settings.platform is None:
            yield
            return
        store = writer_of(self.settings.platform).store
        with hold(store, self.deployment.model, clock=SystemClock(), on_wait=self.console.print):
            yield

    def _revision(self) -> Revision | None:
        """The newest revision; None where only a URL is known, or nothing is deployed."""
        if self.settings.platform is None:
            return None
        history = self.settings.platform.history(self.deployment)
        return history[-1] if history else None

    def _change(self, before: Revision | None) -> str:
        now = self._revision()
        if before is None or now is None or now.number == before.number:
            return ""
        return f"revision {before.number} became {now.number}"

    def _keep(self, capacity: Capacity, revision: Revision | None, found: datetime) -> None:
        if (
            self.settings.platform is None
            or revision is None
            or not revision.complete
            or capacity.ending in NO_WORD
            or not capacity.lower
        ):
            return
        keep_capacity(
            writer_of(self.settings.platform).store,
            self.deployment,
            revision.build,
            capacity,
            policy=self.policy,
            replicas=revision.capacity,
            found=found,
        )
