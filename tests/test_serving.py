"""Health, inference and outputs: every replica answers, from the engine, and makes sense."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from support.gate_runs import evidence_in, run_gates, unreported
from support.stub_server import MODEL, Stub, serving

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.observe.probe import probe
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.serving import Servers, health_and_a_token, sample_inference
from vllm_rollout.settings import Settings, load_settings

PRODUCTION = Deployment(MODEL, "production")


@dataclass
class Platform:
    """Nothing but replicas: by name, where each is reached."""

    replicas_at: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    asked: int = 0

    def replicas(self, _deployment: Deployment) -> list[Replica]:
        self.asked += 1
        there = [n for n in self.replicas_at if self.asked == 1 or n not in self.gone]
        return [Replica(name=n, phase="Running", ready=n != "new", restarts=0) for n in there]

    def replica_url(self, _deployment: Deployment, replica: Replica) -> str:
        return self.replicas_at[replica.name]


Serve = Callable[[Stub], Stub]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as servers:
        yield lambda stub: servers.enter_context(serving(stub))


def settings(url: str, platform: Platform | None = None, **changes: Any) -> Settings:
    made = load_settings(base_url=url, overrides={"environments.production.replicas": 1, **changes})
    return replace(made, platform=cast("ReleaseReader | None", platform))


def asked(settings: Settings, what: str = "both") -> list[Verdict]:
    """The verdicts of both gates, up to the first of each that is not a pass."""
    gates = settings.policy.for_model(MODEL).environments["production"].gates
    assert gates.health
    assert gates.inference
    found: list[Verdict] = []
    with ExitStack() as clients:
        servers = Servers.of(settings, PRODUCTION, clients)
        checks = [health_and_a_token(servers, gates.health)] if what != "inference" else []
        if what != "health":
            checks += [
                sample_inference(servers, gates.inference, lambda *_: None, stream=stream)
                for stream in (False, True)
            ]
        for check in checks:
            for verdict in check:
                found.append(verdict)
                if not verdict.passed:
                    break
    return found


def outcomes(found: list[Verdict]) -> set[Outcome]:
    return {verdict.outcome for verdict in found}


# ------------------------------------------------- each replica


def test_every_ready_replica_is_asked_and_counted(serve: Serve) -> None:
    stubs = [serve(Stub()) for _ in range(5)]
    names = ["a", "b", "c", "d", "new"]
    platform = Platform(dict(zip(names, (s.url for s in stubs), strict=True)))

    found = asked(settings(stubs[0].url, platform))

    assert outcomes(found) == {Outcome.PASS}
    assert [v.reason for v in found if "replicas" in v.reason] == ["4 of 4 replicas answered"] * 3
    assert [len(stub.asked) for stub in stubs] == [6, 3, 3, 3, 0]


def test_a_ready_replica_that_does_not_answer_fails_by_name(serve: Serve) -> None:
    good, dead = serve(Stub()), serve(Stub(status=500))
    platform = Platform({"a": good.url, "b": dead.url, "c": "http://127.0.0.1:9"})

    found = asked(settings(good.url, platform), "health")

    assert len(found) == 1
    assert found[-1].outcome is Outcome.FAIL
    assert found[-1].reason.startswith("1 of 3 replicas answered; b: ")
    assert "engine dead" in found[-1].reason
    assert "c: it is ready, and nothing answers at http://127.0.0.1:9" in found[-1].reason


def test_a_replica_that_was_taken_away_meanwhile_owes_no_answer(serve: Serve) -> None:
    good = serve(Stub())
    platform = Platform({"a": good.url, "b": "http://127.0.0.1:9"}, gone={"b"})

    found = asked(settings(good.url, platform), "health")

    assert (found[0].outcome, found[0].reason) == (Outcome.PASS, "1 of 1 replica answered")


def test_one_replica_that_talks_nonsense_is_named(serve: Serve) -> None:
    good, broken = serve(Stub()), serve(Stub(say=lambda _: "!!!!!!!!!!"))
    found = asked(settings(good.url, Platform({"a": good.url, "b": broken.url})), "inference")
    assert found[1].outcome is Outcome.INCONCLUSIVE
    assert "1 of 2 replicas answered; b: the answer repeats '!'" in found[1].reason


def test_without_addresses_each_sample_has_a_connection_of_its_own(serve: Serve) -> None:
    stub = serve(Stub())
    found = asked(settings(stub.url, **{"environments.production.replicas": 4}))
    assert outcomes(found) == {Outcome.PASS}
    assert len(stub.asked) == len(stub.connections) == 12
    assert "3 of 3 further requests, each by a connection of its own, answered" in found[2].reason


# ------------------------------------------------- caches


def test_no_two_requests_are_alike_and_none_may_be_kept(serve: Serve) -> None:
    stub = serve(Stub())
    made = settings(stub.url)
    for _ in range(2):
        asked(made)
    with made.client(stub.url, PRODUCTION) as client:
        probe(client, count=4, timeout_seconds=5)
    bodies = [str(body) for _, _, body in stub.asked]
    assert len(set(bodies)) == len(bodies)
    assert all("no-store" in headers["Cache-Control"] for _, headers, _ in stub.asked)


def test_a_dead_engine_behind_a_cache_of_equal_requests_fails(serve: Serve) -> None:
    stub = serve(Stub(cache=lambda body: str(sorted(body.items()))))
    assert outcomes(asked(settings(stub.url))) == {Outcome.PASS}
    stub.status = 500
    assert outcomes(asked(settings(stub.url))) >= {Outcome.FAIL}


@pytest.mark.parametrize("created", [1795432565, None])
def test_the_same_answer_twice_is_inconclusive(serve: Serve, created: int | None) -> None:
    def likeness(body: dict[str, Any]) -> str:  # as a semantic cache has it
        return "greeting" if body["prompt"].startswith("Hello") else str(body)

    stub = serve(Stub(cache=likeness, created=created, say=lambda b: " Hi." * b["max_tokens"]))
    found = asked(settings(stub.url, **{"environments.production.replicas": 2}), "health")
    assert found[-1].outcome is Outcome.INCONCLUSIVE
    assert "from a cache, not from the engine (the answer cmpl-0 came before)" in found[-1].reason


def test_a_server_that_numbers_no_answer_is_no_cache(serve: Serve) -> None:
    stub = serve(Stub(ids=itertools.repeat("cmpl-1"), created=None))
    assert outcomes(asked(settings(stub.url))) == {Outcome.PASS}


def test_a_caches_header_makes_both_gates_inconclusive(serve: Serve) -> None:
    stub = serve(Stub(headers={"X-Cache": "HIT from edge"}))
    found = asked(settings(stub.url))
    assert [v.outcome for v in found if not v.passed] == [Outcome.INCONCLUSIVE] * 3
    assert "x-cache: HIT from edge" in found[-1].reason
    assert "past the cache" in found[-1].remedy


def test_what_a_cache_answers_is_no_probe(serve: Serve) -> None:
    stub = serve(Stub(headers={"Age": "12"}))
    with settings(stub.url).client(stub.url, PRODUCTION) as client:
        sample = probe(client, count=3, timeout_seconds=5)
    assert (sample.total, sample.failures, sample.cached, sample.health_cached) == (0, 0, 3, True)
    assert sample.cached_by == "age: 12"


# ------------------------------------------------- which endpoint


@pytest.mark.parametrize(
    ("serves", "asks", "passes"),
    [("chat/completions", "chat", True), ("chat/completions", "completions", False)],
)
def test_the_policy_says_which_endpoint_is_asked(
    serve: Serve, serves: str, asks: str, passes: bool
) -> None:
    stub = serve(Stub(api=f"/v1/{serves}"))
    found = asked(settings(stub.url, api=asks))
    assert outcomes(found) == {Outcome.PASS} | (set() if passes else {Outcome.FAIL})
    if not passes:
        assert found[1].reason.startswith("/v1/completions was asked, which")
        assert "`api: chat`" in found[1].remedy
        assert "hang" not in found[1].remedy


def test_a_model_served_under_another_name_is_not_found_by_its_own(serve: Serve) -> None:
    here = settings(serve(Stub()).url, **{f"models.{MODEL}.served_as": "wrongname"})
    found = asked(here, "inference")[0]
    assert found.outcome is Outcome.FAIL
    assert found.reason.endswith(", not wrongname")


# ------------------------------------------------- sample outputs, through pytest

OUTPUTS = ("-k", "outputs")


def test_sample_outputs_are_asked_greedily_and_answer_alike(serve: Serve, tmp_path: Path) -> None:
    sampled = itertools.cycle([" a city on the Seine", " Paris."])
    stub = serve(Stub(say=lambda b: " Paris." if b.get("temperature") == 0 else next(sampled)))

    run = run_gates(tmp_path, *unreported(stub.url), *OUTPUTS, changes=())

    assert evidence_in(tmp_path).runs[0].gates[0].outcome is Outcome.PASS, run.stdout
    assert {(b["temperature"], b["seed"]) for _, _, b in stub.asked} == {(0, 0)}


@pytest.mark.parametrize(
    ("said", "outcome"),
    [(" It is Lyon.", Outcome.FAIL), ("!!!! Paris" + "!" * 60, Outcome.INCONCLUSIVE)],
)
def test_the_shipped_samples_have_a_rule_and_refuse_nonsense(
    serve: Serve, tmp_path: Path, said: str, outcome: Outcome
) -> None:
    stub = serve(Stub(say=lambda _: said))
    run_gates(tmp_path, *unreported(stub.url), *OUTPUTS, changes=())
    assert evidence_in(tmp_path).runs[0].gates[0].outcome is outcome
