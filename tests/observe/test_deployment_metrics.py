"""A deployment's metrics: by scripted answers, and by a real Prometheus that scrapes servers."""

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.prometheus import running_prometheus, until
from support.scraped_pods import Pod, World, merged, scripted
from support.scripted_prometheus import NOW, TARGET, T, client, results, samples

from vllm_rollout.judge.live_slo import (
    decided_by_answer_times,
    error_rate_verdicts,
    latency_verdict,
)
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.request_counts import LatencyCounts
from vllm_rollout.observe.deployment_metrics import (
    INTER_TOKEN,
    KV_CACHE_USAGE,
    WAITING,
    DeploymentMetrics,
)
from vllm_rollout.observe.prometheus import Series
from vllm_rollout.policy import load_policy
from vllm_rollout.simulator.running import RunningSimulator

STAGING = Deployment("llama-2-7b", "staging")
DATA = Path(__file__).parents[1] / "data"
METRIC_NAMES = sorted((DATA / "vllm-metric-names").glob("*.txt"))
LABELS = {"namespace": "system", "service": "llama-2-7b-staging"}


def metrics(answers: dict[str, list[Series]], **changes: object) -> DeploymentMetrics:
    """Metrics whose Prometheus answers by the metric's name."""

    def answer(request: httpx.Request) -> httpx.Response:
        query = dict(httpx.QueryParams(request.content.decode()))["query"]
        return httpx.Response(200, json=results(*answers.get(query.partition("{")[0], [])))

    overrides = {"prometheus.url": "http://prometheus"}
    overrides |= {f"prometheus.{key}": value for key, value in changes.items()}
    return DeploymentMetrics(
        client(answer), load_policy(None, overrides=overrides).prometheus, STAGING
    )


UP = [Series(TARGET, samples(1, 1, 1, 1, 1))]
MINUTE = timedelta(minutes=1)


def http(status: str, *values: float | None, **labels: str) -> Series:
    return Series({**TARGET, "status": status, **labels}, samples(*values))


def test_every_series_is_added_up_and_failures_are_those_of_the_servers() -> None:
    rates = metrics(
        {
            "up": UP,
            "http_requests_total": [
                http("2xx", 0, 50, 90, 90, 90, handler="/v1/completions"),
                http("2xx", 5, 5, 5, 5, 10, handler="/v1/chat/completions"),
                http("4xx", 0, 0, 0, 0, 3),
                http("5xx", None, None, 1, 2, 2),
            ],
        }
    ).error_rates(MINUTE, end=NOW)
    (counts,) = rates.sources
    assert (counts.total, counts.failures, counts.failures_at_most) == (100, 2, 2)
    assert rates.against(0.001) == 0.02
    assert rates.unknown == ""


def test_metrics_are_found_by_the_names_of_opentelemetry() -> None:
    buckets = [
        Series({**TARGET, "le": le}, samples(0, 0, 0, 0, n))
        for le, n in (("1.0", 90), ("+Inf", 100))
    ]
    found = metrics(
        {
            "up": UP,
            "http_requests_total": [http("2xx", 0, 0, 0, 0, 96)],
            "vllm_admission_rejections_total": [Series(TARGET, samples(0, 0, 0, 0, 6))],
            "vllm_e2e_request_latency_seconds_bucket": buckets,
        }
    )
    assert found.latency(MINUTE, end=NOW).cumulative == {1.0: 90, math.inf: 100}
    assert found.error_rates(MINUTE, end=NOW).sources[0].failures == 6


def test_answers_4xx_are_counted_on_request_and_named_beside_the_figure() -> None:
    answers = {"up": UP, "http_requests_total": [http("2xx", 0, 0, 0, 0, 90)]}
    answers["http_requests_total"].append(http("4xx", 0, 0, 0, 0, 10))
    (counts,) = metrics(answers).error_rates(MINUTE, end=NOW).sources
    assert (counts.failures, counts.refused) == (0, 10)
    (verdict,) = error_rate_verdicts([counts], limit=0.5, confidence=0.95)
    assert "10 more were answered 4xx, which `failed` does not count" in verdict.reason
    asked = metrics(answers, **{"requests.failed": "(4|5).."}).error_rates(MINUTE, end=NOW)
    assert (asked.sources[0].failures, asked.sources[0].refused) == (10, 0)


def test_polls_of_models_are_no_requests_of_users() -> None:
    """By the handlers that vLLM recorded: only what asks for tokens or vectors counts."""
    rules = load_policy(None).prometheus.requests
    recorded = (DATA / "vllm-0.32.0/noauth/metrics_1_after.body").read_text()
    handlers = set(re.findall(r'http_requests_total\{handler="([^"]+)"', recorded))
    assert handlers == {"/v1/models", "/v1/completions", "/v1/chat/completions", "none"}

    def counted(names: set[str]) -> set[str]:
        return {name for name in names if re.fullmatch(rules.matching["handler"], name)}

    assert counted(handlers) == {"/v1/completions", "/v1/chat/completions"}
    polls = {"/health", "/metrics", "/version", "/tokenize", "/v1/responses/{response_id}"}
    tokens = {"/v1/responses", "/v1/embeddings", "/v1/messages", "/v1/audio/transcriptions"}
    assert counted(polls | tokens) == tokens


def test_streams_that_were_turned_away_are_failures_though_counted_as_answered() -> None:
    rejections = Series(TARGET, samples(0, 0, 0, 6, 6))
    answers = {
        "up": UP,
        "http_requests_total": [http("2xx", 0, 0, 0, 0, 96), http("5xx", 0, 0, 0, 0, 4)],
        "vllm:admission_rejections_total": [rejections],
    }
    (counts,) = metrics(answers).error_rates(MINUTE, end=NOW).sources
    assert (counts.failures, counts.failures_at_most) == (6, 10)


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"up": UP},
        {"up": UP, "http_requests_total": [http("2xx", 7, 7, 7, 7, 7)]},
        {"up": UP, "http_requests_total": [Series(TARGET, samples(0, 1, 2, 3, 4))]},
        {
            "up": [Series(TARGET, samples(1, 0, 0, 0, 0, 0))],
            "http_requests_total": [http("2xx", 0, 9)],
        },
    ],
    ids=["no-target", "no-series", "no-request", "no-status", "down"],
)
def test_without_data_there_is_no_error_rate(answers: dict[str, list[Series]]) -> None:
    rates = metrics(answers, max_gap="20s").error_rates(MINUTE, end=NOW)
    assert rates.against(0.001) is None
    assert rates.unknown


def test_a_gateway_that_shows_errors_counts_and_one_that_is_blind_hides_nothing() -> None:
    gateway = {
        "metric": "istio_requests_total",
        "labels": {"destination_service_name": "{release}"},
        "matching": {},
        "status_label": "response_code",
        "failed": "5..|0",
    }
    own = {"up": UP, "http_requests_total": [http("2xx", 0, 0, 0, 0, 100)]}
    failing = [
        Series({**TARGET, "response_code": "200"}, samples(0, 0, 0, 0, 90)),
        Series({**TARGET, "response_code": "0"}, samples(0, 0, 0, 0, 10)),
    ]
    seen = metrics({**own, "istio_requests_total": failing}, gateway=gateway)
    assert seen.error_rates(MINUTE, end=NOW).against(0.05) == 0.1
    blind = metrics(own, gateway=gateway).error_rates(MINUTE, end=NOW)
    assert blind.against(0.05) is None
    assert "gateway: " in blind.unknown
    # What one source shows stands, whatever the other does not know.
    broken = {"up": UP, "http_requests_total": [http("5xx", 0, 0, 0, 0, 100)]}
    assert metrics(broken, gateway=gateway).error_rates(MINUTE, end=NOW).against(0.05) == 1


def test_a_limit_inside_a_bucket_is_not_decided_by_guessing() -> None:
    counts = LatencyCounts(cumulative={2.5: 900, 5.0: 960, 10.0: 999, math.inf: 1000})
    assert counts.above(6) == (pytest.approx(0.001), pytest.approx(0.04))
    assert counts.percentile_above(95, 6) is False
    assert counts.percentile_above(95, 3) is None
    assert counts.percentile_above(95, 2.5) is True
    assert counts.above(20) == (0.0, pytest.approx(0.001))
    assert LatencyCounts(unknown="no scrape").percentile_above(95, 6) is None
    assert LatencyCounts(cumulative={math.inf: 0}).above(6) is None


def test_metrics_go_by_the_name_that_the_servers_version_has() -> None:
    assert METRIC_NAMES
    for names in (INTER_TOKEN, KV_CACHE_USAGE, WAITING):
        for listing in METRIC_NAMES:
            assert set(names) & set(listing.read_text().split()), (names, listing.name)
    other = {**TARGET, "instance": "10.0.0.2:8000"}
    both = {
        "vllm:kv_cache_usage_perc": [Series(TARGET, ((T, 0.25),))],
        "vllm:gpu_cache_usage_perc": [
            Series(TARGET, ((T, 0.25),)),
            Series(other, ((T, 0.5),)),
        ],
    }
    up = [Series(TARGET, ((T, 1.0),)), Series(other, ((T, 1.0),))]
    assert metrics({**both, "up": up}).gauge(KV_CACHE_USAGE, at=NOW) == 0.75
    assert metrics(both).gauge(KV_CACHE_USAGE, at=NOW) is None
    assert metrics({}).gauge(KV_CACHE_USAGE, at=NOW) is None


# ------------------------------------------------- a real Prometheus, real servers


@pytest.fixture
def scraped(tmp_path: Path) -> Iterator[tuple[DeploymentMetrics, list[RunningSimulator]]]:
    """Two servers of one deployment, and one of another that must not be counted."""
    options = {"model": STAGING.model, "ttft_seconds": 0, "inter_token_seconds": 0}
    with (
        RunningSimulator(**options) as first,
        RunningSimulator(**options) as second,
        RunningSimulator(**options) as other,
    ):
        targets = {
            first.url: LABELS,
            second.url: LABELS,
            other.url: {**LABELS, "service": "llama-2-7b-production"},
        }
        with running_prometheus(tmp_path, targets) as url:
            changes = {"prometheus.url": url, "prometheus.max_gap": "10m"}
            found = DeploymentMetrics.of(load_policy(None, overrides=changes), STAGING)
            assert found is not None
            yield found, [first, second, other]
            found.close()


def complete(server: RunningSimulator, count: int) -> None:
    body = {"model": STAGING.model, "prompt": "Hello", "max_tokens": 2}
    with httpx.Client(base_url=server.url) as http:
        for _ in range(count):
            http.post("/v1/completions", json=body)


@pytest.mark.prometheus
def test_a_real_prometheus_tells_exact_counts_and_which_server_goes_down(
    scraped: tuple[DeploymentMetrics, list[RunningSimulator]],
) -> None:
    found, (first, second, other) = scraped
    until(
        lambda: found._scrapes(ago(300), datetime.now(UTC))[0].targets == 2, what="both targets up"
    )
    complete(first, 30)
    complete(second, 10)
    complete(other, 50)
    httpx.patch(f"{first.url}/simulator/dials", json={"error_rate": 1.0})
    complete(first, 4)

    def counts() -> tuple[int, int]:
        (servers,) = found.error_rates(timedelta(minutes=5), end=datetime.now(UTC)).sources
        return servers.total, servers.failures

    until(lambda: counts() == (44, 4), what=f"the counts of the requests sent, not {counts()}")
    latency = found.latency(timedelta(minutes=5), end=datetime.now(UTC))
    assert latency.total == 40
    assert latency.percentile_above(95, 6) is False
    assert found.gauge(KV_CACHE_USAGE, at=datetime.now(UTC)) == 0

    def up() -> list[int]:
        return [n for _, n in found.uptime(ago(300), datetime.now(UTC)).moments[-1:]]

    until(lambda: up() == [2], what="both up")
    first.close()
    until(lambda: up() == [1], what="one up")


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("seconds", "polls", "outcome"),
    [
        (2.7, 2.0, "pass"),  # as many polls of /v1/models as requests, all quick
        (3.2, 0.0, "fail"),
        (4.5, 2.0, "fail"),
    ],
)
def test_a_limit_inside_a_bucket_is_decided_by_answer_times(
    seconds: float, polls: float, outcome: str
) -> None:
    """By the buckets that a stock vLLM has; what another load measured has no part in it."""
    world = merged(
        *(
            Pod(f"10.0.0.{i}:8000", seconds=seconds, polls=polls).scraped(T, offset=i)
            for i in range(2)
        )
    )
    rules = load_policy(None, overrides={"prometheus.url": "http://prometheus"}).prometheus
    production = Deployment("llama-2-7b", "production")
    asked_for: list[str] = []

    def answer(metric: str) -> World:
        asked_for.append(metric)
        return world

    found = DeploymentMetrics(scripted(answer), rules, production)
    window = timedelta(minutes=15)
    counted = found.latency(window, end=NOW)
    asked: dict[str, float] = {"percentile": 95, "confidence": 0.95}
    buckets = latency_verdict(counted, limit_seconds=3, **asked)
    assert buckets.outcome == "inconclusive"
    asked_for.clear()
    decided = decided_by_answer_times(
        buckets, counted, lambda: found.answer_times(window, end=NOW), **asked
    )
    assert decided.outcome == outcome, decided.reason
    assert "of whole answers over HTTP" in decided.reason
    assert asked_for.count("up") == 1


def test_what_a_stock_vllm_recorded_decides_a_limit_between_its_buckets() -> None:
    """P95 between 2.5 and 5 s by its engine, and above 3 s by its HTTP server."""
    before, after = (
        {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(
                (DATA / f"vllm-0.32.0/noauth/metrics_{name}.body").read_text()
            )
            for sample in family.samples
        }
        for name in ("2_midload_c64", "3_after_load_and_abort")
    )
    answers: dict[str, list[Series]] = {"up": [Series(TARGET, samples(1, 1, 1, 1, 1))]}
    for (name, *labels), value in after.items():
        first = before.get((name, *labels), 0.0)
        values = samples(first, first, first, first, value)
        answers.setdefault(name, []).append(Series({**TARGET, **dict(labels)}, values))
    found = metrics(answers)
    counted = found.latency(MINUTE, end=NOW)
    asked: dict[str, float] = {"percentile": 95, "confidence": 0.95}
    buckets = latency_verdict(counted, limit_seconds=3, **asked)
    assert (buckets.outcome, buckets.lower, buckets.upper) == ("inconclusive", 2.5, 5.0)
    decided = decided_by_answer_times(
        buckets, counted, lambda: found.answer_times(MINUTE, end=NOW), **asked
    )
    assert (decided.outcome, decided.n) == ("fail", 601), decided.reason
    assert (decided.lower, decided.upper) == (3.5, 4.0)
