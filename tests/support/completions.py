"""Recorded completions of vLLM, and an aiohttp handler that answers with them."""

from pathlib import Path

from aiohttp import web

NOAUTH = Path(__file__).parents[1] / "data" / "vllm-0.32.0" / "noauth"
STREAM = (NOAUTH / "completion_stream_usage.body").read_bytes()
EVENTS = [event + b"\n\n" for event in STREAM.split(b"\n\n") if event]
WHOLE = (NOAUTH / "completion.body").read_bytes()


async def answer(request: web.Request) -> web.StreamResponse:
    """Answer as vLLM does, streamed when asked to."""
    body = await request.json()
    if not body["stream"]:
        return web.Response(body=WHOLE, content_type="application/json")
    assert body["stream_options"] == {"include_usage": True}
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in EVENTS:
        await response.write(event)
    return response
