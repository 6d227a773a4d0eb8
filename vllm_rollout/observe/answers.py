"""A model server's answer: pure parsing of completions and chat completions.

Both shapes of OpenAI's wire format, whole and streamed, as vLLM writes them. Everything here is
untrusted input: what does not parse, or parses and is not a whole answer, raises `AnswerError`
and is never an empty success.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from vllm_rollout.model.load_result import RequestOutcome

_LONGEST_ERROR = 200
_LONGEST_LINE = 16 * 1024 * 1024
_FIELDS = (b"data", b"event", b"id", b"retry", b":")
_LONGEST_FIELD = 5
_UNFINISHED = ("abort", "error")
"""Finish reasons with which vLLM ends an answer that it did not finish."""


class AnswerError(Exception):
    """Unsuccessful answer: its outcome, the reason, and the status it names, if any."""

    def __init__(self, outcome: RequestOutcome, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.status = status


class _Message(msgspec.Struct):
    """A chat's `message` or, streamed, its `delta`; `role` is there in the one that opens it."""

    role: Any = msgspec.UNSET
    content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    """One of a completion's or a chat's choices, or a piece of one."""

    index: int = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: Any = None


class _Wire(msgspec.Struct):
    """A whole answer or one event of a stream, as far as it is of interest."""

    id: Any = None
    created: Any = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_WIRE = msgspec.json.Decoder(_Wire)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole, valid answer. `text` and `finish_reason` are those of the first choice.

    `id` and `created` are as the server wrote them; empty and None where it wrote none.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    id: str = field(default="", compare=False)
    created: object = field(default=None, compare=False)


def parse_completion(body: bytes) -> Answer:
    """The answer in the body of a 200 response that was not streamed.

    Raises:
        AnswerError: HTTP_ERROR for an error body, MALFORMED for anything else that is not an
            answer with at least one choice and one token, TRUNCATED for an aborted one.
    """
    answer = _decoded(body)
    if answer.error is not None:
        raise _error(answer.error)
    if not answer.choices:
        raise _malformed("no choices")
    for choice in answer.choices:
        _check_finish(choice.finish_reason)
    first = answer.choices[0]
    return _answer(_text(first), first.finish_reason, answer.usage, answer)


def error_of(status: int, body: bytes) -> AnswerError:
    """The error that a response with a status other than 200 stands for, in the server's words."""
    try:
        reported = _decoded(body).error
    except AnswerError:
        reported = None
    if reported is not None:
        return AnswerError(RequestOutcome.HTTP_ERROR, f"{status} {_error(reported)}", status=status)
    text = body[: 4 * _LONGEST_ERROR].decode("utf-8", "replace")
    return AnswerError(RequestOutcome.HTTP_ERROR, _cut(f"{status} {text}"), status=status)


class SseAnswer:
    """Reads one streamed answer (server-sent events) as its bytes come, however they are cut.

    The request must have asked for usage (`stream_options: {"include_usage": true}`): the number of
    tokens is part of a valid answer.
    """

    def __init__(self) -> None:
        self._rest: list[bytes | bytearray] = []
        self._rest_length = 0
        self._data: list[bytes] = []
        self._text: list[str] = []
        self._finish_reasons: dict[int, str | None] = {}
        self._usage: Any = None
        self._first: _Wire | None = None
        self._done = False

    def feed(self, data: bytes | bytearray) -> list[str]:
        """Take the next bytes; return the text of each event that they complete and holds a token.

        A token may be empty text (half of a character); a chat's opening role is no token.

        Raises:
            AnswerError: HTTP_ERROR for an error event, with its code as status; MALFORMED.
        """
        self._rest.append(data)
        self._rest_length += len(data)
        if self._rest_length > _LONGEST_LINE:
            raise _malformed(f"a line of more than {_LONGEST_LINE} bytes")
        if b"\n" not in data:
            return []
        lines = b"".join(self._rest).split(b"\n")
        self._rest = [lines.pop()]
        self._rest_length = len(self._rest[0])
        tokens: list[str] = []
        for line in lines:
            line = line.removesuffix(b"\r")  # noqa: PLW2901 - either line end is allowed
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif line:
                _check_field(line)
            elif self._data:
                event = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                self._data.clear()
                self._take(event, tokens)
        return tokens

    def finish(self) -> Answer:
        """The answer, once the body has ended.

        Raises:
            AnswerError: TRUNCATED when the stream lacks its end, MALFORMED when it holds no token
                or no usage.
        """
        if not self._done:
            if self._rest_length >= _LONGEST_FIELD:
                _check_field(b"".join(self._rest))
            raise _truncated("the stream ended without [DONE]")
        if not self._finish_reasons:
            raise _malformed("a stream without a token")
        for reason in self._finish_reasons.values():
            _check_finish(reason)
        first = self._finish_reasons[min(self._finish_reasons)]
        return _answer("".join(self._text), str(first), self._usage, self._first)

    def _take(self, event: bytes, tokens: list[str]) -> None:
        """Take one event's data, and add what it holds to the tokens."""
        if event == b"[DONE]":
            self._done = True
            return
        chunk = _decoded(event)
        if chunk.error is not None:
            raise _error(chunk.error)
        if self._first is None:
            self._first = chunk
        if chunk.usage:
            self._usage = chunk.usage
        if chunk.choices is None:
            raise _malformed(f"no choices: {event[:_LONGEST_ERROR]!r}")
        for choice in chunk.choices:
            text = _text(choice)
            if text or choice.delta is None or choice.delta.role is msgspec.UNSET:
                tokens.append(text)
                self._finish_reasons.setdefault(choice.index, None)
            if choice.index == 0:
                self._text.append(text)
            if choice.finish_reason is not None:
                self._finish_reasons[choice.index] = choice.finish_reason


def _check_field(line: bytes) -> None:
    """Refuse a web page or plain JSON in place of an event stream."""
    if line and not line.startswith(_FIELDS):
        raise _malformed(f"not an event stream: {line[:_LONGEST_ERROR]!r}")


def _decoded(body: bytes) -> _Wire:
    """Decode and check the shape in one go: this is done for every token."""
    try:
        return _WIRE.decode(body)
    except (ValueError, RecursionError):
        pass
    try:
        # Half a surrogate pair in a string, as gateways send that cut text anywhere, is still JSON.
        return msgspec.convert(json.loads(body), _Wire)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"not an answer ({error}): {body[:_LONGEST_ERROR]!r}") from error


def _error(reported: Any) -> AnswerError:
    """vLLM: `{"error": {"message", "type", "param", "code"}}`, or `{"error": "Unauthorized"}`."""
    message: Any = reported
    code: Any = 0
    if isinstance(reported, dict):
        message, code = reported.get("message"), reported.get("code")
    return AnswerError(
        RequestOutcome.HTTP_ERROR, _cut(str(message)), status=code if isinstance(code, int) else 0
    )


def _text(choice: _Choice) -> str:
    """The text of a choice: a completion's `text`, a chat's `message` or, streamed, its `delta`."""
    message = choice.message or choice.delta
    if message is not None:
        # A reasoning model's first tokens come beside the content, and a tool call has none.
        return message.content or message.reasoning or ""
    if choice.text is None:
        raise _malformed("a choice without text")
    return choice.text


def _check_finish(reason: Any) -> None:
    if not isinstance(reason, str):
        raise _truncated("no finish_reason")
    if reason in _UNFINISHED:
        raise _truncated(f"ended with finish_reason {reason}")


def _answer(text: str, finish_reason: str, usage: Any, named: _Wire | None) -> Answer:
    if not isinstance(usage, dict):
        raise _malformed("no usage")
    prompt_tokens, completion_tokens = (
        usage.get(key) for key in ("prompt_tokens", "completion_tokens")
    )
    if not isinstance(prompt_tokens, int) or not isinstance(completion_tokens, int):
        raise _malformed("a usage without numbers of tokens")
    if completion_tokens < 1:
        raise _malformed("an answer of no tokens")
    return Answer(
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        id=named.id if named and isinstance(named.id, str) else "",
        created=named.created if named and isinstance(named.created, int | float) else None,
    )


def _malformed(message: str) -> AnswerError:
    return AnswerError(RequestOutcome.MALFORMED, message)


def _truncated(message: str) -> AnswerError:
    return AnswerError(RequestOutcome.TRUNCATED, message)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_ERROR else text[: _LONGEST_ERROR - 2] + " …"
