"""A fast model server that records its own true latencies, for the load benchmarks.

Answers completions and chats as vLLM does, whole and streamed, from one uvloop process. A request's
times are drawn from its number (the nine digits that the suite's prompts begin with; other clients'
requests are counted), so whoever knows the number knows what the server will take for it. With
`--freeze` the whole process stands still for that long in every ten seconds, as a paused virtual
machine does: nothing is read, nothing is written.

    GET    /truth   {"requests": [[number, received, first_token, end], …], "freezes": [[a, b], …]}
    DELETE /truth   forget it

Times are `time.monotonic` seconds: taken when the request has been read, and when its first and
last bytes have been handed to the socket.
"""

import argparse
import asyncio
import itertools
import json
import math
import os
import random
import re
import time
from typing import cast

import uvloop

FREEZE_EVERY_SECONDS = 10.0
_NUMBER = re.compile(rb'"(?:prompt|content)": ?"(\d{9})\b')
_MODELS = {"object": "list", "data": [{"id": "llama-2-7b", "object": "model"}]}
_CREATED = 1_795_432_565


class Timing:
    """How long each request takes: time to first token log-normal, the others evenly spaced."""

    def __init__(self, ttft_seconds: float, spread: float, inter_token_seconds: float) -> None:
        self._log = math.log(ttft_seconds) if ttft_seconds else -math.inf
        self._spread = spread
        self.inter_token_seconds = inter_token_seconds

    def ttft_seconds(self, number: int) -> float:
        """Time to first token of a request."""
        if self._log == -math.inf:
            return 0.0
        draw = random.Random(number).gauss(0, 1)
        return math.exp(self._log + self._spread * draw)


class Desk:
    """What all connections of the server share."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self.rows: list[tuple[int, float, float, float]] = []
        self.freezes: list[tuple[float, float]] = []
        self.counted = itertools.count()
        self.wholes: dict[tuple[int, bool], bytes] = {}

    def truth(self) -> dict[str, object]:
        """Everything recorded."""
        return {"requests": self.rows, "freezes": self.freezes}


def event(chat: bool, text: str, finish_reason: str | None) -> bytes:
    """One token's event as vLLM writes it, in its HTTP chunk."""
    said = {"delta": {"content": text}} if chat else {"text": text}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
    return _chunk(chat, {"choices": [{**choice, "stop_reason": None, "token_ids": None}]})


def ending(chat: bool, tokens: int) -> bytes:
    """The last token's event, the usage and the end of the body."""
    usage = {"prompt_tokens": 16, "total_tokens": 16 + tokens, "completion_tokens": tokens}
    done = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    return event(chat, " end", "length") + _chunk(chat, {"choices": [], "usage": usage}) + done


def _chunk(chat: bool, fields: dict[str, object]) -> bytes:
    kind = "chat.completion.chunk" if chat else "text_completion"
    head = {"id": "cmpl-b5c9b24a26e7141e", "object": kind, "created": _CREATED}
    text = json.dumps({**head, "model": "llama-2-7b", **fields}, separators=(",", ":"))
    data = f"data: {text}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(chat: bool, tokens: int) -> bytes:
    """A whole response that is not streamed."""
    text = " sea" * tokens
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    body = json.dumps(
        {
            "id": "cmpl-b6a234ae7c6bab92",
            "object": "chat.completion" if chat else "text_completion",
            "created": _CREATED,
            "model": "llama-2-7b",
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": "length"}],
            "usage": {
                "prompt_tokens": 16,
                "total_tokens": 16 + tokens,
                "completion_tokens": tokens,
            },
        },
        separators=(",", ":"),
    ).encode()
    return _response(body)


def _response(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_TOKEN = {chat: event(chat, " sea", None) for chat in (False, True)}


class Connection(asyncio.Protocol):
    """One client connection; requests on it come one after the other."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._loop = asyncio.get_running_loop()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received = data = self._received + data if self._received else data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = data[:end].lower()
        length = 0
        if (at := head.find(b"content-length:")) > 0:
            length = int(head[at + 15 : head.index(b"\r", at)])
        if len(data) < end + length:
            return
        self._received = b""
        if head.startswith(b"post /v1/"):
            self._complete(head.startswith(b"post /v1/chat"), data[end:])
        else:
            self._other(head)

    def _other(self, head: bytes) -> None:
        desk, body = self._desk, b"{}"
        if head.startswith(b"get /truth"):
            body = json.dumps(desk.truth()).encode()
        elif head.startswith(b"delete /truth"):
            desk.rows.clear()
            desk.freezes.clear()
            desk.counted = itertools.count()
        elif head.startswith(b"get /v1/models"):
            body = json.dumps(_MODELS).encode()
        self._transport.write(_response(body))

    def _complete(self, chat: bool, body: bytes) -> None:
        received = time.monotonic()
        asked = json.loads(body)
        tokens = asked.get("max_tokens") or asked.get("max_completion_tokens") or 16
        found = _NUMBER.search(body)
        number = int(found[1]) if found else next(self._desk.counted)
        ttft = self._desk.timing.ttft_seconds(number)
        gap = self._desk.timing.inter_token_seconds
        if not asked.get("stream"):
            after = ttft + gap * (tokens - 1)
            if after:
                self._loop.call_later(after, self._whole, chat, tokens, number, received)
            else:
                self._whole(chat, tokens, number, received)
        elif ttft or gap:
            first = self._loop.time() + ttft
            self._loop.call_at(first, self._token, chat, tokens, number, received, first, 0)
        else:
            parts = [_STREAM_HEAD, *[_TOKEN[chat]] * (tokens - 1), ending(chat, tokens)]
            self._transport.write(b"".join(parts))
            now = time.monotonic()
            self._desk.rows.append((number, received, now, now))

    def _whole(self, chat: bool, tokens: int, number: int, received: float) -> None:
        if self._transport.is_closing():
            return
        response = self._desk.wholes.get((tokens, chat))
        if response is None:
            response = self._desk.wholes[tokens, chat] = whole(chat, tokens)
        self._transport.write(response)
        self._desk.rows.append((number, received, math.inf, time.monotonic()))

    def _token(
        self,
        chat: bool,
        tokens: int,
        number: int,
        received: float,
        first: float,
        sent: int,
        first_token: float = 0.0,
    ) -> None:
        if self._transport.is_closing():
            return
        parts = [] if sent else [_STREAM_HEAD]
        if sent + 1 == tokens:
            parts.append(ending(chat, tokens))
        else:
            parts.append(_TOKEN[chat])
        self._transport.write(b"".join(parts))
        now = time.monotonic()
        first_token = first_token or now
        if sent + 1 == tokens:
            self._desk.rows.append((number, received, first_token, now))
            return
        # Absolute times, so that lateness does not add up from token to token.
        due = first + (sent + 1) * self._desk.timing.inter_token_seconds
        self._loop.call_at(
            due, self._token, chat, tokens, number, received, first, sent + 1, first_token
        )


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until the parent closes standard input."""
    loop = asyncio.get_running_loop()
    desk = Desk(Timing(arguments.ttft, arguments.spread, arguments.inter_token))
    server = await loop.create_server(
        lambda: Connection(desk), "127.0.0.1", arguments.port, backlog=4096
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    ended = asyncio.Event()
    loop.add_reader(0, lambda: os.read(0, 1) or ended.set())

    def freeze() -> None:
        begin = time.monotonic()
        time.sleep(arguments.freeze)
        desk.freezes.append((begin, time.monotonic()))
        loop.call_later(FREEZE_EVERY_SECONDS - arguments.freeze, freeze)

    if arguments.freeze:
        loop.call_later(FREEZE_EVERY_SECONDS / 2, freeze)
    await ended.wait()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft", type=float, default=0.0, help="median seconds to the first token")
    parser.add_argument("--spread", type=float, default=0.25, help="sigma of its logarithm")
    parser.add_argument("--inter-token", type=float, default=0.0, help="seconds between tokens")
    parser.add_argument("--freeze", type=float, default=0.0, help="seconds frozen in every 10")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments))


if __name__ == "__main__":
    main()
