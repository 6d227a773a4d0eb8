"""Probes and watches deployments, through their public URL or directly at their pods."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.live_slo import undecided_limits
from vllm_rollout.judge.rollback_triggers import Found
from vllm_rollout.judge.sample_outputs import doubts_of
from vllm_rollout.model.deployment import Deployment, Revision
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.observation import Observation
from vllm_rollout.observe.bounded_question import BoundedQuestion
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.observe.deployment_metrics import ANSWERS, DeploymentMetrics
from vllm_rollout.observe.figure_readings import FigureReader, Readings
from vllm_rollout.observe.probe import not_of_the_build, probe
from vllm_rollout.observe.prometheus_window import live_metrics
from vllm_rollout.platform.base import PathErrors
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.platform.writer import writer_of
from vllm_rollout.report.terminal import observation_line
from vllm_rollout.rollout.blindness import Blindness
from vllm_rollout.rollout.run import Run, RunLog
from vllm_rollout.rollout.soak_samples import Sampling
from vllm_rollout.rollout.watcher import WatchEnd, Watcher
from vllm_rollout.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentObserver:
    """Probes and watches the deployments of one run.

    `--base-url` names the run's source; every other deployment is observed at the address that its
    platform gives.
    """

    run: Run
    settings: Settings
    log: RunLog
    blindness: Blindness

    @property
    def _platform(self) -> ReleaseReader:
        return self.settings.reader()

    def settings_for(self, deployment: Deployment) -> Settings:
        """Return the settings that hold the address of the deployment."""
        if deployment == self.run.source:
            return self.settings
        return replace(self.settings, base_url=None)

    def reach(self, deployment: Deployment) -> None:
        """Return if a server answers at the deployment's address.

        Raises:
            UnreachableError: none does; the error names the address.
        """
        with self._client(deployment) as client:
            client.health(timeout_seconds=self.run.policy.watch.probe_timeout_seconds)

    def reach_metrics(self, deployment: Deployment) -> list[str]:
        """Return what the policy's Prometheus, if it names one, cannot decide about a deployment.

        Raises:
            UnreachableError: it does not answer.
        """
        replicas = cache(lambda: self._platform.replicas(deployment))  # of one moment
        metrics = DeploymentMetrics.of(self.run.policy, deployment, replicas)
        if metrics is None:
            return []
        with closing(metrics):
            now = metrics.now()
            newest, bounds = metrics.newest(now), metrics.bounds(at=now)
            answers = metrics.bounds(at=now, histogram=ANSWERS)
        late = now.timestamp() - newest.at > self.run.policy.prometheus.max_gap_seconds
        found = [newest.missing, newest.lag if late else ""]
        found += undecided_limits(self.run.policy, deployment.environment, bounds, answers)
        return [each for each in found if each]

    def refusal_at_users_address(self, deployment: Deployment) -> tuple[str, str] | None:
        """Ask for one token at the users' address; return how the key or the address is refused.

        That address is the router of the smoke gate, where it names one. The answer is as of
        `not_of_the_build`: reason and remedy, or None.

        Raises:
            UnreachableError: nothing answers there; the error names the address.
        """
        smoke = self.run.policy.environments[deployment.environment].gates.smoke
        if smoke is not None and smoke.url is not None:
            client = self._client_at(smoke.url, deployment)
        else:
            client = self._client(deployment)
        with client:
            limit = self.run.policy.watch.probe_timeout_seconds
            answer = client.ask("Hello", max_tokens=1, timeout_seconds=limit)
            return not_of_the_build(client, answer.status, answer.error)

    @contextmanager
    def at(self, deployment: Deployment) -> Iterator[Callable[[], Observation]]:
        """Yield a function that observes the deployment through its address."""
        with self._client(deployment) as client:
            yield self._observe_by(client, deployment)

    @contextmanager
    def probe_pods(self, deployment: Deployment) -> Iterator[Callable[[], Observation]]:
        """Yield a function that observes the release's own pods, whatever traffic they have."""
        url = self._platform.own_url(deployment)
        with self._client_at(url, deployment) as client:
            yield self._observe_by(client, deployment)

    def failing_share(self, deployment: Deployment) -> float:
        """Return the share of probes that the release's own pods fail; 1 without an answer."""
        try:
            with self.probe_pods(deployment) as observe:
                probes = observe().probes
        except RolloutError:
            return 1.0
        return probes.failures / probes.total if probes.healthy and probes.total else 1.0

    def soak_sampler(
        self, deployment: Deployment, revision: Revision
    ) -> Callable[[Observation], None] | None:
        """Return a function that stores observations as soak samples of `revision`.

        None where the soak does not go by samples. A sample that cannot be stored is a gap.
        """
        sampling = Sampling.of(
            writer_of(self._platform).store, self.run.policy, deployment, revision
        )
        if sampling is None:
            return None

        def sample(observation: Observation) -> None:
            try:
                sampling.see(self.log.now(), observation.replicas, observation.probes)
            except RolloutError as error:
                self._no_sample(error)

        return sample

    def sample_soak(self, deployment: Deployment, revision: Revision) -> None:
        """Take one soak sample, where the soak goes by samples; what goes wrong is a gap."""
        sample = self.soak_sampler(deployment, revision)
        if sample is None:
            return
        try:
            with self.at(deployment) as observe:
                observation = observe()
        except RolloutError as error:
            self._no_sample(error)
        else:
            sample(observation)

    def watch(
        self,
        deployment: Deployment,
        duration: timedelta | None,
        *,
        after_promotion: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
        on_observation: Callable[[Observation], None] | None = None,
        observe: Callable[[], Observation] | None = None,
    ) -> WatchEnd:
        """Watch the deployment's triggers for `duration`; see `Watcher`.

        `observe` makes one observation, by default through the deployment's address.
        """
        before = self._platform.path_errors(deployment)
        doubted: set[str] = set()

        def on_tick(elapsed: float, observation: Observation) -> None:
            for kind, doubt in doubts_of(observation.probes).items():
                if kind not in doubted:
                    title = f"the watch over {deployment} sees doubtful answers"
                    self.log.log_step(title, doubt, Outcome.INCONCLUSIVE)
                    doubted.add(kind)
            line = observation_line(elapsed, duration, observation)
            self.log.reporter.progress(f"watching {deployment}: {line}")
            if on_observation:
                on_observation(observation)

        patience, reader = self.run.policy.watch.probe_timeout_seconds, None
        if self.run.policy.triggers.resources:
            reader = FigureReader(self.run.policy, self._platform, deployment, now=self.log.now)
        with (
            nullcontext(observe) if observe else self.at(deployment) as see,
            live_metrics(self.run.policy, deployment) as live,
            Readings(reader, every=self.run.policy.watch.interval_seconds) as readings,
        ):

            def look() -> Observation:
                seen = see()
                live.seen(seen)
                return replace(seen, live=live.newest(), figures=readings.new(patience))

            watcher = Watcher(
                policy=self.run.policy,
                clock=self.log.clock,
                observe=look,
                live=live.since_the_first,
                interrupted=interrupted,
                on_found=lambda found, gap: self.blindness.see(
                    deployment, found, why=self._why_blind(deployment, before, found), gap=gap
                ),
                on_pending=lambda conditions: self.log.log_step(
                    f"{deployment} is watched on, until this fires or is over",
                    "; ".join(conditions),
                ),
                on_tick=on_tick,
            )
            end = watcher.watch(duration, after_promotion=after_promotion)
        if end.unseen:
            title = "the watch ended without some data from Prometheus"
            self.log.log_step(title, end.unseen, Outcome.INCONCLUSIVE)
        return end

    def _observe_by(
        self, client: InferenceClient, deployment: Deployment
    ) -> Callable[[], Observation]:
        """Return a function that makes one observation, within twice the probes' timeout."""
        watch = self.run.policy.watch
        replicas = BoundedQuestion(lambda: self._platform.replicas(deployment))

        def observe() -> Observation:
            before = self._platform.path_errors(deployment)
            probes = probe(client, count=watch.probes, timeout_seconds=watch.probe_timeout_seconds)
            found = replicas.get(watch.probe_timeout_seconds)
            path_error = self._platform.path_errors(deployment).since(before)
            return Observation(probes=probes.unless(path_error), replicas=found)

        return observe

    def _client(self, deployment: Deployment) -> InferenceClient:
        return self._client_at(self.settings_for(deployment).url_of(deployment), deployment)

    def _client_at(self, url: str, deployment: Deployment) -> InferenceClient:
        return self.settings.client(url, deployment)

    def _why_blind(self, deployment: Deployment, before: PathErrors, found: Found) -> str:
        path_error = self._platform.path_errors(deployment).since(before)
        return "".join(f"; {why}" for why in (path_error, found.unknown) if why)

    def _no_sample(self, error: RolloutError) -> None:
        self.log.reporter.progress(f"no sample for the soak: {error}")
