"""Each dial does what it says, turned while the simulator runs."""

import json
import socket
from collections import Counter
from typing import Any

import httpx
import pytest

from vllm_rollout.simulator.running import RunningSimulator

HELLO = {"prompt": "Hello", "max_tokens": 6}
STREAM = {**HELLO, "stream": True}


def post(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json={**HELLO, **fields})


def outcomes(simulator: RunningSimulator) -> list[str]:
    return [one["outcome"] for one in simulator.truth()["requests"]]


def test_hang_sends_no_token_while_health_is_200(
    client: httpx.Client, simulator: RunningSimulator
) -> None:
    simulator.turn(hang=True)
    body = json.dumps(HELLO)
    host, _, port = simulator.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert client.get("/health").status_code == 200
        simulator.turn(hang=False)
        connection.settimeout(10)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_hang_opens_a_stream_and_leaves_it_empty(
    client: httpx.Client, simulator: RunningSimulator
) -> None:
    simulator.turn(hang=True)
    with client.stream("POST", "/v1/completions", json=STREAM) as answer:
        assert answer.status_code == 200
        simulator.turn(hang=False)
        assert answer.read().endswith(b"data: [DONE]\n\n")


def test_death_ends_what_is_running(client: httpx.Client, simulator: RunningSimulator) -> None:
    simulator.turn(hang=True)
    with client.stream("POST", "/v1/completions", json=STREAM) as answer:
        simulator.turn(dead=True)
        text = answer.read().decode()
    error, done = text.removesuffix("\n\n").split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == 500
    assert done == "data: [DONE]"
    simulator.turn(dead=False, hang=False)
    assert client.get("/health").status_code == post(client).status_code == 200
    assert outcomes(simulator) == ["dead", "ok"]


def test_a_stall_freezes_all_but_the_simulators_own_routes(
    client: httpx.Client, simulator: RunningSimulator
) -> None:
    simulator.turn(stall_seconds=60, stall_every_seconds=60.001)

    def frozen() -> bool:
        try:
            client.get("/health", timeout=0.2)
        except httpx.ReadTimeout:
            return True
        return False

    assert any(frozen() for _ in range(100))  # the first may come before the freeze
    simulator.turn(stall_seconds=0)
    assert client.get("/health").status_code == post(client).status_code == 200


@pytest.mark.parametrize("status", [500, 503, 429])
def test_error_rate_answers_its_share_with_the_status(
    status: int, client: httpx.Client, simulator: RunningSimulator
) -> None:
    simulator.turn(seed=1, error_rate=0.2, error_status=status)
    answers = [post(client, stream=number % 2 == 0) for number in range(100)]
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {200, status}
    assert 10 <= counts[status] <= 30
    body = next(answer for answer in answers if answer.status_code == status).json()
    assert (body["error"]["code"], body["error"]["param"]) == (status, None)


@pytest.mark.parametrize("stream", [True, False])
def test_truncated_answers_break_off(
    stream: bool, client: httpx.Client, simulator: RunningSimulator
) -> None:
    simulator.turn(truncated_rate=1)
    read: list[bytes] = []
    with client.stream("POST", "/v1/completions", json={**HELLO, "stream": stream}) as answer:
        with pytest.raises(httpx.RemoteProtocolError):
            read.extend(answer.iter_raw())
        assert answer.status_code == 200
    came = b"".join(read)
    assert came.startswith(b"data: " if stream else b'{"id"')
    assert not came.endswith((b"[DONE]\n\n", b"}"))
    assert outcomes(simulator) == ["truncated"]


def test_malformed_answers_do_not_parse(client: httpx.Client, simulator: RunningSimulator) -> None:
    simulator.turn(malformed_rate=1)
    whole, stream = post(client), post(client, stream=True)
    assert whole.status_code == stream.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        whole.json()
    broken = 0
    for block in stream.text.removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]:
        try:
            json.loads(block.removeprefix("data: "))
        except json.JSONDecodeError:
            broken += 1
    assert broken == 1
    assert outcomes(simulator) == ["malformed", "malformed"]


def test_the_model_stops_by_itself_unless_told_to_ignore_it(
    client: httpx.Client, simulator: RunningSimulator
) -> None:
    simulator.turn(eos_after=3)

    def ending(**fields: Any) -> tuple[str, int]:
        answer = post(client, **fields).json()
        return answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]

    assert ending(max_tokens=8) == ("stop", 3)
    assert ending(max_tokens=3) == ("stop", 3)
    assert ending(max_tokens=2) == ("length", 2)
    assert ending(max_tokens=8, ignore_eos=True) == ("length", 8)
    assert '"finish_reason":"stop"' in post(client, stream=True, max_tokens=8).text


def test_output_is_said_word_for_word(client: httpx.Client, simulator: RunningSimulator) -> None:
    hostile = "<script>alert('x')</script>  & \u202e\"\\\n"
    simulator.turn(output=hostile)
    words = len(hostile.split(" "))
    assert post(client, max_tokens=words).json()["choices"][0]["text"] == hostile
    events = post(client, max_tokens=words, stream=True).text.split("\n\n")[:-2]
    texts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events]
    assert "".join(texts) == hostile


def test_max_model_len_limits_prompt_and_output_together(
    client: httpx.Client, simulator: RunningSimulator
) -> None:
    simulator.turn(max_model_len=8)
    assert post(client, prompt="one two three four", max_tokens=4).status_code == 200
    refused = post(client, prompt="one two three four five", max_tokens=4)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input_tokens")


def test_one_seed_gives_the_same_draws_again(
    client: httpx.Client, simulator: RunningSimulator
) -> None:
    law = "lognormal(median=0.002, sigma=1)"

    def session(seed: int) -> list[tuple[Any, ...]]:
        simulator.turn(
            seed=seed, ttft_seconds=law, inter_token_seconds=law, error_rate=0.3, malformed_rate=0.2
        )
        simulator.request("DELETE", "/simulator/truth")
        texts = [
            post(client).text.partition('"text":')[2].partition(',"logprobs"')[0] for _ in range(12)
        ]
        truth = simulator.truth()["requests"]
        return [
            (text, one["outcome"], one["target_ttft_seconds"], one["target_seconds"])
            for text, one in zip(texts, truth, strict=True)
        ]

    first = session(7)
    assert len({row[3] for row in first}) > 2
    assert session(7) == first
    assert session(8) != first


def test_wrong_dials_are_refused_with_the_valid_names_and_change_nothing(
    client: httpx.Client, simulator: RunningSimulator
) -> None:
    before = client.get("/simulator/dials").json()
    for body in (
        '{"eror_rate": 0.5}',
        '{"error_rate": 2, "hang": true}',
        "[]",
        "{",
        '{"seed": NaN}',
    ):
        answer = client.patch("/simulator/dials", content=body)
        assert answer.status_code == 400
        assert answer.json()["valid"] == list(before)
    assert (
        "eror_rate: no such dial"
        in client.patch("/simulator/dials", content='{"eror_rate": 0.5}').json()["error"]
    )
    assert client.get("/simulator/dials").json() == before


def test_truth_holds_each_requests_own_times(
    client: httpx.Client, simulator: RunningSimulator
) -> None:
    simulator.turn(ttft_seconds=0.02, inter_token_seconds=0.01)
    client.post("/v1/completions", json=STREAM, headers={"X-Request-Id": "mine"})
    post(client, max_tokens=0)
    answered, refused = simulator.truth()["requests"]
    assert (answered["id"], answered["outcome"], answered["tokens"]) == ("cmpl-mine", "ok", 6)
    assert answered["target_ttft_seconds"] == pytest.approx(0.02)
    assert answered["target_seconds"] == pytest.approx(0.07)
    # Never before it was due; how much later is the machine's affair.
    assert answered["first_token"] - answered["received"] >= 0.02
    assert answered["end"] - answered["received"] >= 0.07
    assert (refused["outcome"], refused["first_token"]) == ("refused", None)
    assert client.get("/simulator/lateness").json()["tokens"]["count"] >= 6
    client.delete("/simulator/truth")
    assert simulator.truth()["requests"] == []


def test_an_old_client_gets_a_stream_without_chunks(simulator: RunningSimulator) -> None:
    body = json.dumps(STREAM)
    host, _, port = simulator.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        answer = b""
        while part := connection.recv(4096):
            answer += part
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert rest.startswith(b"data: {")
    assert rest.endswith(b"data: [DONE]\n\n")
