"""Checks of whether a deployment serves: the gates and the verification of a rollback share them.

Each yields its verdicts in order. Whoever asks stops at the first that is not a pass, so that a
server whose `/health` fails is not asked for a token as well.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Self

from vllm_rollout.judge import Outcome, Verdict, check
from vllm_rollout.judge.diagnosis import Finding, findings_of
from vllm_rollout.judge.no_answer import (
    answered,
    is_of_another_api,
    is_of_another_model,
    is_page,
    other_api,
    other_model,
    page_reason,
    plain_to_tls,
    remedy_for,
)
from vllm_rollout.judge.replicas import cached_verdict, each_answers, replicas_verdict
from vllm_rollout.judge.sample_outputs import answer_verdict
from vllm_rollout.judge.served_model import root_verdict
from vllm_rollout.model.deployment import Deployment, Replica, Revision
from vllm_rollout.model.errors import RolloutError, UnreachableError
from vllm_rollout.model.load_result import RequestOutcome
from vllm_rollout.model.observation import NAME_THE_ADDRESS, ServedModels
from vllm_rollout.model.units import counted
from vllm_rollout.model.verdict import NoToken, NoWord
from vllm_rollout.next_command import release_command
from vllm_rollout.observe.client import Health as HealthAnswer
from vllm_rollout.observe.client import Inference as Answered
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.observe.probe import not_of_the_build
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import Policy
from vllm_rollout.policy.gates import Health, Inference
from vllm_rollout.settings import Settings

Attach = Callable[[str, str], None]
"""Shows a text beside the gate: its title and the text."""

Ask = Callable[[InferenceClient], Verdict]

_MOST_AT_ONCE = 32
_ASKED_BESIDE_SECONDS = 5.0
"""For each question that is asked to explain why another got no answer."""
_HANDSHAKE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The release under test, as its platform shows it."""

    platform: ReleaseReader
    deployment: Deployment
    policy: Policy

    def replicas(self) -> list[Replica]:
        """The replicas that exist now."""
        return list(self.platform.replicas(self.deployment))

    def revision(self) -> Revision | None:
        """The newest revision, or None when the release does not exist."""
        history = self.platform.history(self.deployment)
        return history[-1] if history else None

    def findings(self) -> tuple[Finding, ...]:
        """Return why each replica that is not ready is not."""
        symptoms = self.platform.symptoms(self.deployment)
        return findings_of(symptoms, self.policy, self.deployment)

    def logs(self, *, tail: int = 20) -> str:
        """The last log lines of each replica."""
        return self.platform.logs(self.deployment, tail=tail)


def pods_running_and_ready(cluster: Cluster, attach: Attach) -> Iterator[Verdict]:
    """Every replica of the release is Running and Ready; `attach` gets why one is not."""
    revision, replicas = cluster.revision(), cluster.replicas()
    found: tuple[Finding, ...] = ()
    if not replicas or not all(replica.ready for replica in replicas):
        # They are not ready, whether or not it can be found out why.
        with suppress(RolloutError, OSError):
            found = cluster.findings()
    for finding in found:
        attach(f"{finding.replica}: {finding.cause}", finding.text)
    expected = revision.capacity if revision else None
    yield replicas_verdict(replicas, expected=expected, findings=found)


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of a deployment: its address, and each ready replica by itself.

    `address` makes a connection for each request. `samples` requests go to it where the replicas
    cannot be asked by themselves.
    """

    address: InferenceClient
    samples: int
    _settings: Settings
    _deployment: Deployment
    _clients: ExitStack

    @classmethod
    def of(cls, settings: Settings, deployment: Deployment, clients: ExitStack) -> Self:
        """The deployment's servers; `clients` closes what is opened."""
        policy = settings.policy.for_model(deployment.model)
        address = clients.enter_context(
            settings.client(settings.url_of(deployment), deployment, fresh=True)
        )
        replicas = policy.environments[deployment.environment].replicas
        return cls(address, replicas, settings, deployment, clients)

    @property
    def model(self) -> str:
        """The model under test, by the suite's name for it."""
        return self._deployment.model

    @property
    def see_logs(self) -> str:
        """A remedy: where to find the log of who answers."""
        if self._settings.platform is None:
            return "Look at the server's log."
        return f"Look at the replicas' logs: {release_command('logs', self._deployment)}"

    def ready(self) -> dict[str, InferenceClient]:
        """Return a client for each ready replica, by its name; none where one has no address."""
        platform = self._settings.platform
        if platform is None:
            return {}
        ready = [each for each in platform.replicas(self._deployment) if each.ready]
        urls = {each.name: platform.replica_url(self._deployment, each) for each in ready}
        if not all(urls.values()):
            return {}
        return {
            name: self._clients.enter_context(self._settings.client(url, self._deployment))
            for name, url in urls.items()
        }

    def commands(self) -> list[tuple[str, ...]]:
        """Return the command line of each ready replica, where it is known."""
        platform = self._settings.platform
        replicas = platform.replicas(self._deployment) if platform else ()
        return [each.command for each in replicas if each.ready and each.command]

    def still_ready(self, name: str) -> bool:
        """Return False if the replica has gone, or is not ready any more."""
        platform = self._settings.reader()
        return any(r.name == name and r.ready for r in platform.replicas(self._deployment))


def no_word_on_the_build(client: InferenceClient, status: int, error: str) -> Verdict | None:
    """Return the verdict on an answer about the key or the address; None for any other."""
    found = not_of_the_build(client, status, error)
    if not status and client.speaks_tls(timeout_seconds=_HANDSHAKE_SECONDS):
        found = plain_to_tls(client.base_url)
    if found is None:
        return None
    reason, remedy = found
    return NoWord(outcome=Outcome.INCONCLUSIVE, reason=reason, remedy=remedy, n=1)


def unanswered(
    client: InferenceClient, model: str, result: Answered, *, seconds: float = _ASKED_BESIDE_SECONDS
) -> Verdict:
    """The verdict on a request for an answer of `model` that got none: why, and what to do.

    The server is asked what it serves, or which APIs it has, where that explains it: each question
    has so many `seconds`.
    """
    status, error, asked = result.status, result.error, client.base_url + client.path
    if refused := no_word_on_the_build(client, status, error):
        return refused
    if is_page(result.outcome, error):
        return _page(asked, error)
    reason = answered(asked, outcome=result.outcome, status=status, error=error)
    remedy = remedy_for(outcome=result.outcome, status=status, error=error)
    if is_of_another_model(status, error):
        listed = _listed(client, seconds)
        if listed.named(client.model) is None:
            reason, remedy = other_model(client.base_url, model, client.model, listed)
    elif result.outcome is RequestOutcome.HTTP_ERROR and is_of_another_api(status, error):
        offered = client.offered(timeout_seconds=seconds)
        reason, remedy = other_api(client.base_url, client.path, error, offered)
    return NoToken(outcome=Outcome.FAIL, reason=reason, remedy=remedy, n=1)


def why_not_asked(title: str, *, unreachable: bool) -> str:
    """Why gates that need tokens are not asked: what the gate called `title` has met."""
    return f"“{title}” got no {'answer' if unreachable else 'token'}"


def not_asked(why: str) -> Verdict:
    """The verdict of a gate that needs tokens, where it is known that there are none."""
    reason = f"not asked: {why}"
    return NoWord(outcome=Outcome.INCONCLUSIVE, reason=reason, n=0)


def _listed(client: InferenceClient, seconds: float) -> ServedModels:
    try:
        return client.served_models(timeout_seconds=seconds)
    except UnreachableError:
        return ServedModels(status=0)


def _page(url: str, page: str) -> Verdict:
    return NoToken(
        outcome=Outcome.INCONCLUSIVE, reason=page_reason(url, page), remedy=NAME_THE_ADDRESS, n=1
    )


def health_and_a_token(servers: Servers, gate: Health) -> Iterator[Verdict]:
    """`/health` returns 200 and one token comes, from each ready replica and at the address."""

    def ask(client: InferenceClient) -> Verdict:
        health = _health(client, gate, servers.see_logs)
        return _token(client, servers.model, gate) if health.passed else health

    replicas = servers.ready()
    yield from _replicas(servers, replicas, ask)
    yield _health(servers.address, gate, servers.see_logs)
    yield _token(servers.address, servers.model, gate)
    if not replicas:
        yield from _further(servers, ask)


def _health(client: InferenceClient, gate: Health, see_logs: str) -> Verdict:
    return health_verdict(client, client.health(timeout_seconds=gate.timeout_seconds), see_logs)


def health_verdict(client: InferenceClient, health: HealthAnswer, see_logs: str) -> Verdict:
    """The verdict on an answer of `/health`; `see_logs` is the remedy where it is of no use."""
    if health.status == 200 and health.error:
        return _page(client.health_url, health.error)
    if health.status == 200 and health.cached:
        return cached_verdict(health.cached)
    refused = no_word_on_the_build(client, health.status, health.error)
    if not health.status and refused is None:
        remedy = remedy_for(outcome=health.outcome, status=0, error=health.error)
        reason = f"{client.health_url}: {health.error}"
        return NoToken(outcome=Outcome.FAIL, reason=reason, remedy=remedy, n=1)
    return refused or check(
        health.status == 200,
        f"/health answered {health.status}",
        remedy="If the server's health check has another path, set `health_path` in the policy."
        if health.status == 404
        else see_logs,
    )


def _token(client: InferenceClient, model: str, gate: Health) -> Verdict:
    token = client.greet(max_tokens=1, timeout_seconds=gate.timeout_seconds)
    if not token.ok:
        return unanswered(client, model, token)
    if token.cached:
        return cached_verdict(token.cached)
    return check(True, f"one token came in {token.seconds:.3g} s")


def sample_inference(
    servers: Servers, gate: Inference, attach: Attach, *, stream: bool
) -> Iterator[Verdict]:
    """The model is listed by its name, it is the one that the replicas' command lines name, and the
    sample prompt gets a valid answer, at the address and at each ready replica.
    """
    client = servers.address
    listed = client.served_models(timeout_seconds=gate.timeout_seconds)
    served = listed.named(client.model)
    if served is not None:
        attach("served model", str(served))
    yield models_verdict(client, servers.model, listed)
    if served and (found := root_verdict(client.model, served.root, servers.commands())):
        yield found

    def ask(each: InferenceClient) -> Verdict:
        return _sample_verdict(each, servers.model, _sample(each, gate, stream=stream))

    replicas = servers.ready()
    yield from _replicas(servers, replicas, ask)
    result = _sample(client, gate, stream=stream)
    attach("answer", result.answer.text if result.answer else result.error)
    yield _sample_verdict(client, servers.model, result)
    if not replicas:
        yield from _further(servers, ask)


def models_verdict(client: InferenceClient, model: str, listed: ServedModels) -> Verdict:
    """The verdict on the list of models: it has the one that is asked for."""
    if refused := no_word_on_the_build(client, listed.status, listed.error):
        return refused
    if listed.error:
        outcome = RequestOutcome.HTTP_ERROR if listed.status >= 400 else RequestOutcome.MALFORMED
        if not listed.status:
            outcome = RequestOutcome.CONNECTION
        if is_page(outcome, listed.error):
            return _page(f"{client.base_url}/v1/models", listed.error)
        remedy = remedy_for(outcome=outcome, status=listed.status, error=listed.error)
        return check(False, f"/v1/models cannot be read: {listed.error}", remedy=remedy)
    if listed.named(client.model) is None:
        reason, remedy = other_model(client.base_url, model, client.model, listed)
        return check(False, reason, remedy=remedy)
    return check(True, f"/v1/models lists {listed.names}")


def _sample(client: InferenceClient, gate: Inference, *, stream: bool) -> Answered:
    return client.ask(
        gate.prompt, max_tokens=gate.max_tokens, timeout_seconds=gate.timeout_seconds, stream=stream
    )


def _sample_verdict(client: InferenceClient, model: str, result: Answered) -> Verdict:
    if result.answer is None:
        return unanswered(client, model, result)
    if result.cached:
        return cached_verdict(result.cached)
    tokens = result.answer.completion_tokens
    judged = answer_verdict(result.answer.text, completion_tokens=tokens)
    if not judged.passed:
        return judged
    return check(True, f"{counted(tokens, 'token')} in {result.seconds:.3g} s")


def _replicas(
    servers: Servers, clients: Mapping[str, InferenceClient], ask: Ask
) -> Iterator[Verdict]:
    """Ask every replica of `clients`, and count those that answer: before the address is asked,
    behind which nobody can tell which of them it is that does not.
    """

    def answer(client: InferenceClient) -> Verdict:
        try:
            return ask(client)
        except UnreachableError as error:
            reason = f"it is ready, and {error}"
            return NoToken(outcome=Outcome.FAIL, reason=reason, remedy=error.remedy, n=1)

    if not clients:
        return
    with ThreadPoolExecutor(min(len(clients), _MOST_AT_ONCE)) as pool:
        found = dict(zip(clients, pool.map(answer, clients.values()), strict=True))
    # One that was taken away meanwhile, as a ramp does, owes no answer.
    owing = {name: v for name, v in found.items() if v.passed or servers.still_ready(name)}
    if owing:
        yield each_answers(owing)


def _further(servers: Servers, ask: Ask) -> Iterator[Verdict]:
    """Ask the address again, by other connections: no replica can be asked by itself."""
    more = servers.samples - 1
    if more < 1:
        return
    with ThreadPoolExecutor(min(more, _MOST_AT_ONCE)) as pool:
        answers = list(pool.map(lambda _: ask(servers.address), range(more)))
    yield each_answers(
        {f"request {n}": v for n, v in enumerate(answers, 2)},
        noun="further request",
        how=", each by a connection of its own,",
    )
