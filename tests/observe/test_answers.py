"""Answers are read as vLLM writes them, and nothing but a whole one is a success."""

import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_rollout.model.load_result import RequestOutcome
from vllm_rollout.observe.answers import Answer, AnswerError, SseAnswer, error_of, parse_completion

DATA = Path(__file__).parents[1] / "data" / "vllm-0.32.0"
LITELLM = DATA.parent / "litellm-1.106.2"
STREAM = (DATA / "noauth" / "completion_stream_usage.body").read_bytes()
CHAT_STREAM = (DATA / "noauth" / "chat_stream_usage.body").read_bytes()


def recorded(name: str) -> bytes:
    return (DATA / f"{name}.body").read_bytes()


def read_stream(*pieces: bytes) -> tuple[list[str], Answer]:
    sse = SseAnswer()
    tokens = [token for piece in pieces for token in sse.feed(piece)]
    return tokens, sse.finish()


def refused(body: bytes, *, stream: bool) -> AnswerError:
    with pytest.raises(AnswerError) as caught:
        read_stream(body) if stream else parse_completion(body, max_tokens=16)
    return caught.value


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(recorded("noauth/completion")) | fields).encode()


CHOICE = {"index": 0, "text": "a", "finish_reason": "stop"}
USAGE = {"prompt_tokens": 2, "completion_tokens": 1}


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b"", RequestOutcome.MALFORMED),
        (b"<html>502 Bad Gateway</html>", RequestOutcome.MALFORMED),
        (b"[1]", RequestOutcome.MALFORMED),
        (b"[" * 100_000, RequestOutcome.MALFORMED),
        (b"\xff\xfe{}", RequestOutcome.MALFORMED),
        (b"{}", RequestOutcome.MALFORMED),
        (recorded("noauth/completion")[:-20], RequestOutcome.MALFORMED),
        (changed(choices=[]), RequestOutcome.MALFORMED),
        (changed(choices=["a"]), RequestOutcome.MALFORMED),
        (changed(choices=[CHOICE | {"text": None}]), RequestOutcome.MALFORMED),
        (changed(choices=[CHOICE | {"message": "a"}]), RequestOutcome.MALFORMED),
        (changed(choices=[CHOICE | {"finish_reason": None}]), RequestOutcome.TRUNCATED),
        (changed(choices=[CHOICE | {"finish_reason": "abort"}]), RequestOutcome.TRUNCATED),
        (changed(choices=[CHOICE, CHOICE | {"finish_reason": None}]), RequestOutcome.TRUNCATED),
        (changed(usage=None), RequestOutcome.MALFORMED),
        (changed(usage=USAGE | {"completion_tokens": 0}), RequestOutcome.MALFORMED),
        (changed(usage=USAGE | {"completion_tokens": "8"}), RequestOutcome.MALFORMED),
        (changed(usage=USAGE | {"completion_tokens": True}), RequestOutcome.MALFORMED),
        (changed(usage=USAGE | {"completion_tokens": -1}), RequestOutcome.MALFORMED),
        (changed(usage=USAGE | {"completion_tokens": 17}), RequestOutcome.MALFORMED),
        (changed(usage=USAGE | {"prompt_tokens": -1}), RequestOutcome.MALFORMED),
        (changed(usage=USAGE | {"prompt_tokens": 10**400}), RequestOutcome.MALFORMED),
        (changed(usage={"prompt_tokens": 1, "completion_tokens": 0.5}), RequestOutcome.MALFORMED),
        (b'{"error": {"code": 1' + b"0" * 4400 + b"}}", RequestOutcome.MALFORMED),
        (b'{"error": ' + b"[" * 900 + b"]" * 900 + b"}", RequestOutcome.HTTP_ERROR),
        (recorded("overload503/completion_503"), RequestOutcome.HTTP_ERROR),
        (recorded("apikey/nokey_completion"), RequestOutcome.HTTP_ERROR),
    ],
)
def test_a_body_that_is_not_a_whole_answer_is_refused(body: bytes, outcome: RequestOutcome) -> None:
    assert refused(body, stream=False).outcome is outcome


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b"", RequestOutcome.TRUNCATED),
        (STREAM.replace(b"data: [DONE]\n\n", b""), RequestOutcome.TRUNCATED),
        (STREAM[:-2], RequestOutcome.TRUNCATED),
        (STREAM[:300], RequestOutcome.TRUNCATED),
        (STREAM.replace(b'"length"', b"null"), RequestOutcome.TRUNCATED),
        (STREAM.replace(b'"length"', b'"error"'), RequestOutcome.TRUNCATED),
        (STREAM.replace(b'"index":0', b'"index":"0"'), RequestOutcome.MALFORMED),
        (STREAM.replace(b'{"id"', b'{"id', 1), RequestOutcome.MALFORMED),
        (b"data: [DONE]\n\n", RequestOutcome.MALFORMED),
        (b"<html>\n</html>\n", RequestOutcome.MALFORMED),
        (recorded("noauth/completion"), RequestOutcome.MALFORMED),
        (recorded("noauth/completion_stream"), RequestOutcome.MALFORMED),
        (b"data: " + b"x" * (17 << 20), RequestOutcome.MALFORMED),
    ],
    ids=[
        "empty",
        "no [DONE]",
        "cut before the last blank line",
        "cut in the middle",
        "no finish reason",
        "aborted by the engine",
        "an index that is no number",
        "broken JSON",
        "no token",
        "a web page",
        "not streamed",
        "no usage",
        "an endless line",
    ],
)
def test_a_stream_that_is_not_a_whole_answer_is_refused(
    body: bytes, outcome: RequestOutcome
) -> None:
    assert refused(body, stream=True).outcome is outcome


def test_an_overload_inside_a_200_stream_is_the_http_error_that_it_names() -> None:
    error = refused(recorded("overload503/completion_stream_overload_http200"), stream=True)
    assert (error.outcome, error.status) == (RequestOutcome.HTTP_ERROR, 503)
    assert "busy" in str(error)


def test_recorded_answers_are_read() -> None:
    assert parse_completion(recorded("noauth/completion")) == Answer(
        text=json.loads(recorded("noauth/completion"))["choices"][0]["text"],
        finish_reason="length",
        prompt_tokens=2,
        completion_tokens=8,
    )
    assert parse_completion(recorded("noauth/chat")).completion_tokens == 8
    assert parse_completion(recorded("noauth/completion_list_prompts")).finish_reason == "length"


def test_recorded_streams_are_read_token_by_token() -> None:
    tokens, answer = read_stream(STREAM)
    assert tokens == ["J", "J", "wor", ""]
    assert answer == Answer(
        text="JJwor", finish_reason="length", prompt_tokens=2, completion_tokens=4
    )
    tokens, answer = read_stream(CHAT_STREAM)
    assert len(tokens) == answer.completion_tokens == 4, "the opening role is no token"
    assert answer.text.startswith("one")


@pytest.mark.parametrize("name", ["completion_stream", "chat_stream"])
def test_litellms_streams_are_whole_answers(name: str) -> None:
    """Its last choice has a finish reason alone, and the usage follows."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    stream = (
        (LITELLM / f"{name}.body").read_bytes().replace(b"data: [DONE]", usage + b"data: [DONE]")
    )
    tokens, answer = read_stream(stream)
    assert "".join(tokens) == answer.text != ""
    assert all(tokens), "neither the opening role nor the end is a token"
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 2)


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ({"content": "Hm"}, "Hm"),
        ({"content": None, "reasoning_content": "Hm"}, "Hm"),
        ({"content": "", "reasoning": "Hm"}, "Hm"),
        ({"content": [{"type": "text", "text": "H"}, {"type": "text", "text": "m"}]}, "Hm"),
        ({"content": None, "tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, ""),
    ],
    ids=["content", "reasoning_content", "reasoning", "list", "tool call"],
)
def test_a_role_repeated_in_each_delta_hides_no_token(delta: dict[str, object], text: str) -> None:
    opening = {"role": "assistant", "content": ""}
    sse = SseAnswer()
    read = [
        len(sse.feed(b"data: %b\n\n" % json.dumps({"choices": [{"delta": each}]}).encode()))
        for each in (opening, opening | delta, opening | delta)
    ]
    assert read == [0, 1, 1]
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": USAGE}
    assert sse.feed(b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(end).encode()) == []
    assert sse.finish().text == 2 * text
    message = {"index": 0, "message": opening | delta, "finish_reason": "stop"}
    assert parse_completion(changed(choices=[message])).text == text


def test_an_endless_event_is_held_to_its_limit_only() -> None:
    sse = SseAnswer()
    sse.feed(STREAM.replace(b"data: [DONE]\n\n", b""))
    assert 5 <= (text := sse.held) < 1000, "JJwor"
    line = b"data: " + b"x" * 1_000_000 + b"\n"
    sse.feed(line)
    assert sse.held == text + len(line) - 1
    with pytest.raises(AnswerError, match="an event of more than"):
        sse.feed(20 * line)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary() | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_whatever_comes_is_an_answer_or_an_answer_error(value: object) -> None:
    body = value if isinstance(value, bytes) else json.dumps({"choices": value}).encode()
    for fields in ({}, {"usage": value}, {"error": value}, {"choices": [{"message": value}]}):
        if not isinstance(value, bytes):
            body = changed(**fields)
        with suppress(AnswerError):
            parse_completion(body)
        with suppress(AnswerError):
            read_stream(b"data: " + body + b"\n\n")
        assert error_of(500, body).status == 500


@given(
    cuts=st.lists(st.integers(0, len(STREAM)), max_size=40),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    bom=st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_a_stream_reads_the_same_however_the_network_cuts_it(
    cuts: list[int], end: bytes, bom: bytes
) -> None:
    stream = bom + STREAM.replace(b"\n", end)
    edges = [0, *sorted(cuts), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    assert read_stream(*pieces) == read_stream(STREAM)


def test_comments_other_fields_and_data_on_several_lines_are_part_of_the_format() -> None:
    lines = STREAM.replace(b"data: {", b": ping\n\nevent: chunk\nid: 7\ndata: {", 1)
    lines = lines.replace(b',"object"', b',\ndata: "object"', 1)
    assert read_stream(lines) == read_stream(STREAM)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, recorded("noauth/err_unknown_model"), "404 The model"),
        (401, recorded("apikey/nokey_completion"), "401 Unauthorized"),
        (500, recorded("engine-dead/completion_1"), "500 EngineCore"),
        (502, b"<html><title>Bad Gateway</title>" + b"x" * 5000, "502 text/html (“Bad Gateway”)"),
        (502, b"x" * 5000, "502 xxx"),
        (500, b"", "500 "),
    ],
)
def test_an_error_status_is_told_in_the_servers_words_and_at_a_bounded_length(
    status: int, body: bytes, message: str
) -> None:
    error = error_of(status, body)
    assert (error.outcome, error.status) == (RequestOutcome.HTTP_ERROR, status)
    assert str(error).startswith(message)
    assert len(str(error)) < 250
