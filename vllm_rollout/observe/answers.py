"""A model server's answer: pure parsing of completions and chat completions.

Both shapes of OpenAI's wire format, whole and streamed, as vLLM writes them. Everything here is
untrusted input: what does not parse, or parses and is not a whole answer, raises `AnswerError`
and is never an empty success.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from vllm_rollout.model.load_result import NO_USAGE, WEB_PAGE, RequestOutcome
from vllm_rollout.model.units import counted
from vllm_rollout.observe.event_stream import EventStream, NotAnEventStreamError

_LONGEST_ERROR = 200
_LAST_STATUS = 599
_PIECE_BYTES = 64
"""Size of a str besides its characters."""
_MOST_TOKENS = 2**31
"""A server that claims as many in one answer is wrong."""
_UNFINISHED = ("abort", "error")
"""Finish reasons with which vLLM ends an answer that it did not finish."""
_PAGE = re.compile(
    rb"[\s\xef\xbb\xbf]*<(?:!--|(?:!doctype\s+html|html|head|body|title)\b)", re.IGNORECASE
)
_TITLE = re.compile(rb"<title[^>]*>([^<]{1,80})", re.IGNORECASE)


class AnswerError(Exception):
    """Unsuccessful answer: its outcome, the reason, and the status it names, if any."""

    def __init__(self, outcome: RequestOutcome, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.status = status


def page_in(body: bytes | bytearray) -> str:
    """`text/html (“Sign in”)` for the body of a web page, with its title; empty for any other."""
    if not _PAGE.match(body):
        return ""
    title = _TITLE.search(body)
    text = " ".join(title[1].decode("utf-8", "replace").split()) if title else ""
    return WEB_PAGE + (f" (“{text}”)" if text else "")


class _Message(msgspec.Struct):
    """A chat's `message` or, streamed, its `delta`.

    A reasoning model's first tokens come beside the content, and a tool call has none. `role` is
    there in the delta that opens an answer, before any token; some servers repeat it in each.
    """

    role: Any = msgspec.UNSET
    content: str | list[Any] | None = None
    reasoning: str | None = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None

    def read(self) -> tuple[str, bool]:
        """Return its text, and whether it is a token, which may be empty (half of a character)."""
        content = self.content
        if content and isinstance(content, str):
            return content, True
        found = content or self.reasoning or self.reasoning_content or self.refusal
        text = "".join(map(_part, found)) if isinstance(found, list) else _part(found)
        if found or self.tool_calls or self.function_call:
            return text, True
        return text, content is not None and self.role is msgspec.UNSET


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
    detail: Any = None
    """What FastAPI has for an error that is not vLLM's own."""


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


def parse_completion(body: bytes, *, max_tokens: int = _MOST_TOKENS) -> Answer:
    """The answer in the body of a 200 response that was not streamed.

    It was asked for at most `max_tokens`.

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
    text, found = _read(first)
    if not found and first.message is None:
        raise _malformed("a choice without text")
    return _answer(text, first.finish_reason, answer.usage, max_tokens, answer)


def error_of(status: int, body: bytes) -> AnswerError:
    """The error that a response with a status other than 200 stands for, in the server's words."""
    reported = None
    with suppress(AnswerError):
        answer = _decoded(body)
        reported = answer.detail if answer.error is None else answer.error
    if reported is not None:
        return AnswerError(RequestOutcome.HTTP_ERROR, f"{status} {_error(reported)}", status=status)
    text = page_in(body) or body[: 4 * _LONGEST_ERROR].decode("utf-8", "replace")
    return AnswerError(RequestOutcome.HTTP_ERROR, _cut(f"{status} {text}"), status=status)


class SseAnswer:
    """Reads one streamed answer (server-sent events) as its bytes come, however they are cut.

    The request must have asked for usage (`stream_options: {"include_usage": true}`): the number of
    tokens is part of a valid answer. So many as `max_tokens` were asked for at most.
    """

    def __init__(self, *, max_tokens: int = _MOST_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._events = EventStream()
        self._text: list[str] = []
        self._text_bytes = 0
        self._finish_reasons: dict[int, str | None] = {}
        self._usage: Any = None
        self._first: _Wire | None = None
        self._done = False

    @property
    def held(self) -> int:
        """About how many bytes are kept: the text so far, and the event that is not whole yet."""
        return self._events.held + self._text_bytes

    def feed(self, data: bytes | bytearray) -> list[str]:
        """Take the next bytes; return the text of each event that they complete and holds a token.

        A token may be empty text (half of a character); a chat's opening role is no token.

        Raises:
            AnswerError: HTTP_ERROR for an error event, with its code as status; MALFORMED.
        """
        tokens: list[str] = []
        try:
            for event in self._events.feed(data):
                self._take(event, tokens)
        except NotAnEventStreamError as error:
            raise _malformed(page_in(data) or str(error)) from error
        return tokens

    def finish(self) -> Answer:
        """The answer, once the body has ended.

        Raises:
            AnswerError: TRUNCATED when the stream lacks its end, MALFORMED when it holds no token
                or no usage.
        """
        if not self._done:
            try:
                self._events.finish()
            except NotAnEventStreamError as error:
                raise _malformed(page_in(error.seen) or str(error)) from error
            raise _truncated("the stream ended without [DONE]")
        if not self._finish_reasons:
            raise _malformed("a stream without a token")
        for reason in self._finish_reasons.values():
            _check_finish(reason)
        if not self._usage:
            raise _malformed(NO_USAGE)
        first = self._finish_reasons[min(self._finish_reasons)]
        text = "".join(self._text)
        return _answer(text, str(first), self._usage, self._max_tokens, self._first)

    def _take(self, event: bytes | bytearray, tokens: list[str]) -> None:
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
            text, token = _read(choice)
            if token:
                tokens.append(text)
                self._finish_reasons.setdefault(choice.index, None)
            elif choice.delta is choice.message is choice.finish_reason is None:
                raise _malformed("a choice without text")
            if choice.index == 0:
                self._text.append(text)
                self._text_bytes += len(text) + _PIECE_BYTES
            # LiteLLM ends with a choice of a finish reason alone.
            if choice.finish_reason is not None:
                self._finish_reasons[choice.index] = choice.finish_reason


def _decoded(body: bytes | bytearray) -> _Wire:
    """Decode and check the shape in one go: this is done for every token."""
    try:
        return _WIRE.decode(body)
    except (ValueError, RecursionError):
        pass
    try:
        # Half a surrogate pair in a string, as gateways send that cut text anywhere, is still JSON.
        return msgspec.convert(json.loads(body), _Wire)
    except (ValueError, RecursionError) as error:
        if page := page_in(body):
            raise _malformed(page) from error
        raise _malformed(f"not an answer ({error}): {body[:_LONGEST_ERROR]!r}") from error


def _error(reported: Any) -> AnswerError:
    """vLLM: `{"error": {"message", "type", "param", "code"}}`, or `{"error": "Unauthorized"}`."""
    message: Any = reported
    code: Any = 0
    if isinstance(reported, dict):
        message, code = reported.get("message"), reported.get("code")
    try:
        text = str(message)
    except (ValueError, RecursionError):  # digits without end, or nested too deeply to be shown
        text = "an error that cannot be shown"
    known = type(code) is int and 100 <= code <= _LAST_STATUS
    return AnswerError(RequestOutcome.HTTP_ERROR, _cut(text), status=code if known else 0)


def _read(choice: _Choice) -> tuple[str, bool]:
    """The text of a choice, and whether it is a token.

    It is a completion's `text`, a chat's `message` or, streamed, its `delta`.
    """
    message = choice.delta or choice.message
    if message is not None:
        return message.read()
    return choice.text or "", choice.text is not None


def _part(part: Any) -> str:
    """The text of one part of a content that is a list, `{"type": "text", "text": "…"}`."""
    if isinstance(part, dict):
        part = part.get("text")
    return part if isinstance(part, str) else ""


def _check_finish(reason: Any) -> None:
    if not isinstance(reason, str):
        raise _truncated("no finish_reason")
    if reason in _UNFINISHED:
        raise _truncated(f"ended with finish_reason {reason}")


def _answer(
    text: str, finish_reason: str, usage: Any, max_tokens: int, named: _Wire | None
) -> Answer:
    if not isinstance(usage, dict):
        raise _malformed("no usage")
    prompt_tokens, completion_tokens = (
        usage.get(key) for key in ("prompt_tokens", "completion_tokens")
    )
    # A bool is an int to Python, and JSON's may have digits without end.
    if type(prompt_tokens) is not int or type(completion_tokens) is not int:
        raise _malformed("a usage without numbers of tokens")
    if completion_tokens == 0:
        raise _malformed("an answer of no tokens")
    if not 0 <= prompt_tokens < _MOST_TOKENS:
        raise _malformed("a usage that no prompt can have")
    if not 0 < completion_tokens <= max_tokens:
        raise _malformed(
            f"a usage that no answer of at most {counted(max_tokens, 'token')} can have"
        )
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
