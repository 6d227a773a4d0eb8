"""Prometheus as a source: what it cannot know is never taken for health."""

import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.prometheus import running_prometheus, until

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.request_counts import LatencyCounts
from vllm_rollout.observe.deployment_metrics import (
    INTER_TOKEN,
    KV_CACHE_USAGE,
    WAITING,
    DeploymentMetrics,
)
from vllm_rollout.observe.prometheus import Prometheus, Series, quoted, selector
from vllm_rollout.observe.series import scrapes_of
from vllm_rollout.policy import load_policy
from vllm_rollout.simulator.running import RunningSimulator

NOW = datetime(2026, 11, 18, 10, 0, tzinfo=UTC)
T = NOW.timestamp()
STAGING = Deployment("llama-2-7b", "staging")
DATA = Path(__file__).parents[1] / "data"
METRIC_NAMES = sorted((DATA / "vllm-metric-names").glob("*.txt"))
LABELS = {"namespace": "system", "service": "llama-2-7b-staging"}


def client(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> Prometheus:
    def streamed(request: httpx.Request) -> httpx.Response:
        whole = answer(request)
        return httpx.Response(
            whole.status_code, headers=whole.headers, stream=httpx.ByteStream(whole.content)
        )

    transport = httpx.MockTransport(streamed)
    return Prometheus("http://prometheus", timeout_seconds=1, transport=transport, **options)


def results(*series: Series) -> dict[str, Any]:
    result = [
        {"metric": dict(s.labels), "values": [[t, str(v)] for t, v in s.samples]} for s in series
    ]
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(503, text="starting"),
        httpx.Response(200, text="<html>a login page</html>"),
        httpx.Response(422, json={"status": "error", "error": "query timed out"}),
        httpx.Response(200, json=["success"]),
        httpx.Response(200, json={"status": "success", "data": {}}),
        httpx.Response(200, json={"status": "success", "data": {"result": [{"metric": {}}]}}),
        httpx.Response(200, json=results() | {"warnings": ["a store did not answer"]}),
    ],
)
def test_an_answer_that_cannot_be_relied_on_is_no_answer(answer: httpx.Response) -> None:
    with pytest.raises(UnreachableError, match="Prometheus at http://prometheus gave no answer"):
        client(lambda request: answer).at("up", NOW)


def test_nothing_listening_a_timeout_and_a_bad_ca_file_are_unreachable(tmp_path: Path) -> None:
    def hangs(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("too long", request=request)

    with pytest.raises(UnreachableError, match="ReadTimeout"):
        client(hangs).at("up", NOW)
    with pytest.raises(UnreachableError, match="ConnectError"):
        Prometheus("http://127.0.0.1:9", timeout_seconds=5).at("up", NOW)
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(UnreachableError, match="CA file"):
        client(hangs, ca_file=tmp_path / "ca.pem")


def test_the_token_is_sent_read_anew_and_in_no_message(tmp_path: Path) -> None:
    file, sent = tmp_path / "token", []

    def refuses(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("Authorization"))
        return httpx.Response(401, json={"status": "error", "error": "who are you"})

    prometheus = client(refuses, token_file=file)
    for token in ("first-secret", "second-secret"):
        file.write_text(token + "\n")
        with pytest.raises(UnreachableError) as raised:
            prometheus.at("up", NOW)
        assert "secret" not in str(raised.value) + raised.value.remedy
    assert sent == ["Bearer first-secret", "Bearer second-secret"]
    file.unlink()
    with pytest.raises(UnreachableError, match="token file"):
        prometheus.at("up", NOW)


def test_values_cannot_break_out_of_their_quotes() -> None:
    assert quoted('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'
    hostile = '"} or up{x="'
    assert selector("up", {"job": hostile}) == f"up{{job={json.dumps(hostile)}}}"


def test_samples_that_are_no_number_are_left_out() -> None:
    raw = results(Series({"a": "b"}, ((T, math.nan), (T + 1, math.inf), (T + 2, 3.0))))
    (series,) = client(lambda request: httpx.Response(200, json=raw)).at("x", NOW)
    assert series.samples == ((T + 2, 3.0),)


# ------------------------------------------------- increases and gaps, by hand


def samples(*values: float | None, every: float = 15, start: float = T - 60) -> Any:
    """One sample every 15 s from a minute before now; None where there is none."""
    return tuple((start + i * every, v) for i, v in enumerate(values) if v is not None)


TARGET = {"job": "vllm", "instance": "10.0.0.1:8000"}


@pytest.mark.parametrize(
    ("counter", "amount", "resets"),
    [
        (samples(10, 12, 15, 15, 20), 10, 0),
        (samples(10, 12, 3, 5, 5), 2 + 3 + 2, 1),  # it fell: 3 are new
        (samples(10, 12, None, 14, 14), 2 + 2, 0),  # missing from a scrape: no new process
        (samples(None, None, 4, 4, 6), 6, 0),  # the first failure makes the series
        (samples(), 0, 0),
    ],
)
def test_a_counter_grows_by_what_was_counted_and_nothing_is_made_up(
    counter: Any, amount: float, resets: int
) -> None:
    up = Series(TARGET, samples(1, 1, 1, 1, 1))
    scrapes = scrapes_of([up], NOW - timedelta(seconds=60), NOW)
    (grown,) = scrapes.increases([Series(TARGET, counter)])
    assert (grown.amount, grown.resets) == (amount, resets)


def test_a_start_time_tells_the_counts_of_a_new_process() -> None:
    """Without one, what may be new is neither counted nor forgotten."""
    start = NOW - timedelta(seconds=60)

    def grown(up: Any, counter: Any, *started: float | None) -> tuple[float, float, int]:
        begun = [Series(TARGET, samples(*started))]
        scrapes = scrapes_of([Series(TARGET, up)], start, NOW, begun)
        (found,) = scrapes.increases([Series(TARGET, counter)])
        return found.amount, found.unsure, found.resets

    fresh, counter = samples(None, None, 1, 1, 1), samples(None, None, 900, 901, 903)
    assert grown(fresh, counter) == (3, 900, 0)
    assert grown(fresh, counter, None, None, *[T - 600] * 3) == (3, 900, 0)
    assert grown(fresh, counter, None, None, *[T - 40] * 3) == (903, 0, 0)
    well, missing = samples(1, 1, 1, 1, 1), samples(10, 12, None, 14, 14)
    assert grown(well, missing) == (4, 12, 0)
    assert grown(well, missing, *[T - 600] * 5) == (4, 0, 0)
    assert grown(well, missing, T - 600, T - 600, None, T - 20, T - 20) == (16, 0, 1)


@pytest.mark.parametrize(
    ("up", "gaps"),
    [
        (samples(1, 1, 1, 1, 1), 0),
        (samples(1, 1, 0, 1, 1), 0),  # one lost scrape is shorter than the longest gap
        (samples(1, 0, 0, 0, 1), 1),  # down: nothing is known of what it counted
        (samples(1, None, None, None, 1), 1),  # Prometheus did not scrape
        (samples(1, 1, None, None, None), 1),  # stale: the newest sample is too old
        (samples(None, None, None, 1, 1), 1),  # it began too late
        ((), 1),
    ],
)
def test_time_without_a_scrape_is_a_gap(up: Any, gaps: int) -> None:
    scrapes = scrapes_of([Series(TARGET, up)], NOW - timedelta(seconds=60), NOW)
    assert len(scrapes.gaps(30)) == gaps


def test_one_server_that_is_down_beside_others_is_named_and_one_that_is_gone_is_not() -> None:
    other = {**TARGET, "instance": "10.0.0.2:8000"}
    well = Series(TARGET, samples(1, 1, 1, 1, 1))
    start = NOW - timedelta(seconds=60)
    (gap,) = scrapes_of([well, Series(other, samples(1, 0, 0, 0, 0))], start, NOW).gaps(30)
    assert "no scrape of 10.0.0.2:8000 from 09:59:00 to 10:00:00 UTC" in str(gap)
    gone = scrapes_of([well, Series(other, samples(1, 1))], start, NOW)
    assert gone.gaps(30) == ()


# ------------------------------------------------- a deployment's metrics, by scripted answers


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
