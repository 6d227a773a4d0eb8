"""Prometheus as a source: what it cannot know is never taken for health."""

import base64
import json
import math
from pathlib import Path

import httpx
import pytest
from support.scripted_prometheus import NOW, T, client, results

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.observe.prometheus import Prometheus, Series, quoted, selector


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


def test_basic_authentication_and_tenant_are_sent_and_in_no_message(tmp_path: Path) -> None:
    file, sent = tmp_path / "password", []

    def refuses(request: httpx.Request) -> httpx.Response:
        sent.append((request.headers["Authorization"], request.headers["X-Scope-OrgID"]))
        return httpx.Response(401, json={"status": "error", "error": "who are you"})

    prometheus = client(refuses, username="ada", token_file=file, tenant="team-a")
    for password in ("first-secret", "second-secret"):
        file.write_text(password + "\n")
        with pytest.raises(UnreachableError) as raised:
            prometheus.at("up", NOW)
        assert "secret" not in str(raised.value)
    basic = [base64.b64encode(f"ada:{p}-secret".encode()).decode() for p in ("first", "second")]
    assert sent == [(f"Basic {each}", "team-a") for each in basic]


def test_a_native_histogram_is_read_at_the_bounds_that_it_has() -> None:
    """Empty buckets are not in an answer; an edge inside another's bucket is no bound of it."""

    def entry(instance: str, *buckets: list[object], count: str) -> dict[str, object]:
        histogram = {"count": count, "sum": "1", "buckets": list(buckets)}
        return {"metric": {"instance": instance}, "histograms": [[T, histogram]]}

    result = [
        entry("a", [0, "0.5", "1", "4"], [0, "2", "4", "1"], count="5"),
        entry("b", [0, "1", "4", "7"], count="7"),
        entry("c", count="0"),
    ]
    raw = {"status": "success", "data": {"resultType": "matrix", "result": result}}
    found = {
        (s.labels["instance"], s.labels["le"]): s.samples[0][1]
        for s in client(lambda request: httpx.Response(200, json=raw)).at("x", NOW)
    }
    assert found == {
        ("a", "1.0"): 4,
        ("a", "4.0"): 5,
        ("a", "+Inf"): 5,
        ("b", "1.0"): 0,
        ("b", "4.0"): 7,
        ("b", "+Inf"): 7,
        ("c", "1.0"): 0,
        ("c", "4.0"): 0,
        ("c", "+Inf"): 0,
    }


def test_values_cannot_break_out_of_their_quotes() -> None:
    assert quoted('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'
    hostile = '"} or up{x="'
    assert selector("up", {"job": hostile}) == f"up{{job={json.dumps(hostile)}}}"


def test_samples_that_are_no_number_are_left_out() -> None:
    raw = results(Series({"a": "b"}, ((T, math.nan), (T + 1, math.inf), (T + 2, 3.0))))
    (series,) = client(lambda request: httpx.Response(200, json=raw)).at("x", NOW)
    assert series.samples == ((T + 2, 3.0),)
