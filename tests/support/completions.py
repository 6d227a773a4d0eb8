"""Recorded completions of vLLM, and an aiohttp handler that answers with them.

Each answer has an id of its own, or it would be a cache's.
"""

import itertools
import re
from pathlib import Path

from aiohttp import web

NOAUTH = Path(__file__).parents[1] / "data" / "vllm-0.32.0" / "noauth"
STREAM = (NOAUTH / "completion_stream_usage.body").read_bytes()
EVENTS = [event + b"\n\n" for event in STREAM.split(b"\n\n") if event]
WHOLE = (NOAUTH / "completion.body").read_bytes()
_NUMBERS = itertools.count()


def numbered(recorded: bytes, number: int) -> bytes:
    """The recorded answer, or a part of it, under the id of `number`."""
    return re.sub(rb'"id":"cmpl-[^"]*"', b'"id":"cmpl-%d"' % number, recorded)


async def answer(request: web.Request) -> web.StreamResponse:
    """Answer as vLLM does, streamed when asked to."""
    body = await request.json()
    number = next(_NUMBERS)
    if not body["stream"]:
        return web.Response(body=numbered(WHOLE, number), content_type="application/json")
    assert body["stream_options"] == {"include_usage": True}
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in EVENTS:
        await response.write(numbered(event, number))
    return response
