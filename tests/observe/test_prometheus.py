"""Prometheus as a source: what it cannot know is never taken for health."""

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


def test_values_cannot_break_out_of_their_quotes() -> None:
    assert quoted('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'
    hostile = '"} or up{x="'
    assert selector("up", {"job": hostile}) == f"up{{job={json.dumps(hostile)}}}"


def test_samples_that_are_no_number_are_left_out() -> None:
    raw = results(Series({"a": "b"}, ((T, math.nan), (T + 1, math.inf), (T + 2, 3.0))))
    (series,) = client(lambda request: httpx.Response(200, json=raw)).at("x", NOW)
    assert series.samples == ((T + 2, 3.0),)
