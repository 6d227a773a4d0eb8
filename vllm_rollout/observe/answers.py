"""What a model server's answer says: pure parsing of completions and chat completions.

Both shapes of OpenAI's wire format, whole and streamed, as vLLM writes them. Everything here is
untrusted input: what does not parse, or parses and is not a whole answer, raises `AnswerError`
and is never an empty success.
"""

import json
from dataclasses import dataclass
from typing import Any

from vllm_rollout.observe.load import RequestOutcome

_LONGEST_ERROR = 200
_LONGEST_LINE = 16 * 1024 * 1024
_FIELDS = (b"data", b"event", b"id", b"retry", b":")
_LONGEST_FIELD = 5
_UNFINISHED = ("abort", "error")
"""Finish reasons with which vLLM ends an answer that it did not finish."""


class AnswerError(Exception):
    """An answer that is no success: what it counts as, why, and the status it names, if any."""

    def __init__(self, outcome: RequestOutcome, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole, valid answer. `text` and `finish_reason` are those of the first choice."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def parse_completion(body: bytes) -> Answer:
    """The answer in the body of a 200 response that was not streamed.

    Raises:
        AnswerError: HTTP_ERROR for an error body, MALFORMED for anything else that is not an
            answer with at least one choice and one token, TRUNCATED for an aborted one.
    """
    answer = _json_object(body)
    _raise_error_of(answer)
    choices = _choices(answer)
    if not choices:
        raise _malformed("no choices")
    for choice in choices:
        _check_finish(choice.get("finish_reason"))
    return _answer(_text(choices[0]), choices[0]["finish_reason"], answer.get("usage"))


def error_of(status: int, body: bytes) -> AnswerError:
    """The error that a response with a status other than 200 stands for, in the server's words."""
    try:
        _raise_error_of(_json_object(body))
    except AnswerError as error:
        if error.outcome is RequestOutcome.HTTP_ERROR:
            return AnswerError(error.outcome, f"{status} {error}", status=status)
    text = body[: 4 * _LONGEST_ERROR].decode("utf-8", "replace")
    return AnswerError(RequestOutcome.HTTP_ERROR, _cut(f"{status} {text}"), status=status)


class SseAnswer:
    """Reads one streamed answer (server-sent events) as its bytes come, however they are cut.

    The request must have asked for usage (`stream_options: {"include_usage": true}`): the number of
    tokens is part of a valid answer.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._text: list[str] = []
        self._finish_reasons: dict[int, str | None] = {}
        self._usage: Any = None
        self._done = False

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes; return the text of each event that they complete and holds a token.

        A token may be empty text (half of a character); a chat's opening role is no token.

        Raises:
            AnswerError: HTTP_ERROR for an error event, with its code as status; MALFORMED.
        """
        self._line += data
        if len(self._line) > _LONGEST_LINE:
            raise _malformed(f"a line of more than {_LONGEST_LINE} bytes")
        if b"\n" not in data:
            return []
        *lines, rest = self._line.split(b"\n")
        self._line = rest
        tokens: list[str] = []
        for line in lines:
            event = self._event(bytes(line.removesuffix(b"\r")))
            if event is not None:
                tokens += self._take(event)
        return tokens

    def finish(self) -> Answer:
        """The answer, once the body has ended.

        Raises:
            AnswerError: TRUNCATED when the stream lacks its end, MALFORMED when it holds no token
                or no usage.
        """
        if not self._done:
            if len(self._line) >= _LONGEST_FIELD:
                _check_field(bytes(self._line))
            raise _truncated("the stream ended without [DONE]")
        if not self._finish_reasons:
            raise _malformed("a stream without a token")
        for reason in self._finish_reasons.values():
            _check_finish(reason)
        first = self._finish_reasons[min(self._finish_reasons)]
        return _answer("".join(self._text), str(first), self._usage)

    def _event(self, line: bytes) -> bytes | None:
        """The data of the event that `line` ends, if it ends one."""
        _check_field(line)
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        if line or not self._data:
            return None
        event = b"\n".join(self._data)
        self._data.clear()
        return event

    def _take(self, event: bytes) -> list[str]:
        if event == b"[DONE]":
            self._done = True
            return []
        chunk = _json_object(event)
        _raise_error_of(chunk)
        self._usage = chunk.get("usage") or self._usage
        tokens = []
        for choice in _choices(chunk):
            index = choice.get("index", 0)
            if not isinstance(index, int):
                raise _malformed("a choice whose index is no number")
            text = _text(choice)
            if text or not _opens_chat(choice):
                tokens.append(text)
                self._finish_reasons.setdefault(index, None)
            if index == 0:
                self._text.append(text)
            if choice.get("finish_reason") is not None:
                self._finish_reasons[index] = choice["finish_reason"]
        return tokens


def _check_field(line: bytes) -> None:
    """Refuse a web page or plain JSON in place of an event stream."""
    if line and not line.startswith(_FIELDS):
        raise _malformed(f"not an event stream: {line[:_LONGEST_ERROR]!r}")


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"not JSON ({error}): {body[:_LONGEST_ERROR]!r}") from error
    if not isinstance(value, dict):
        raise _malformed(f"not a JSON object: {body[:_LONGEST_ERROR]!r}")
    return value


def _raise_error_of(answer: dict[str, Any]) -> None:
    """vLLM: `{"error": {"message", "type", "param", "code"}}`, or `{"error": "Unauthorized"}`."""
    if "error" not in answer or answer["error"] is None:
        return
    message: Any = answer["error"]
    code: Any = 0
    if isinstance(message, dict):
        message, code = message.get("message"), message.get("code")
    raise AnswerError(
        RequestOutcome.HTTP_ERROR, _cut(str(message)), status=code if isinstance(code, int) else 0
    )


def _choices(answer: dict[str, Any]) -> list[dict[str, Any]]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise _malformed(f"no list of choices, but {', '.join(sorted(answer)) or 'nothing'}")
    return choices


def _text(choice: dict[str, Any]) -> str:
    """The text of a choice: a completion's `text`, a chat's `message` or, streamed, its `delta`."""
    message = choice.get("message", choice.get("delta"))
    if message is None:
        text = choice.get("text")
    elif isinstance(message, dict):
        # A reasoning model's first tokens come beside the content, and a tool call has none.
        text = message.get("content") or message.get("reasoning") or ""
    else:
        raise _malformed("a choice whose message is no object")
    if not isinstance(text, str):
        raise _malformed("a choice without text")
    return text


def _opens_chat(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    return isinstance(delta, dict) and "role" in delta


def _check_finish(reason: Any) -> None:
    if not isinstance(reason, str):
        raise _truncated("no finish_reason")
    if reason in _UNFINISHED:
        raise _truncated(f"ended with finish_reason {reason}")


def _answer(text: str, finish_reason: str, usage: Any) -> Answer:
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
    )


def _malformed(message: str) -> AnswerError:
    return AnswerError(RequestOutcome.MALFORMED, message)


def _truncated(message: str) -> AnswerError:
    return AnswerError(RequestOutcome.TRUNCATED, message)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_ERROR else text[: _LONGEST_ERROR - 2] + " …"
