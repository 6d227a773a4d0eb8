"""Locust's own users, as a team would write them: a closed loop around one completion.

    locust -f benchmarks/load_users.py FastHttp --headless --host http://127.0.0.1:8000 -u 64

`FastHttp` uses Locust's FastHttpUser, `Http` its HttpUser. TTFT is not measured: neither can.
"""

import os
from typing import Any

from locust import FastHttpUser, HttpUser, constant, constant_throughput

_BODY = {"model": "llama-2-7b", "prompt": "Write one sentence about the sea."}
_STREAM = os.environ.get("LOAD_STREAM") == "1"
_RATE = float(os.environ.get("LOAD_RATE_PER_USER", "0"))
"""Requests per second that each user aims at; 0 for as many as it can."""
_WAIT = constant_throughput(_RATE) if _RATE else constant(0)


def ask(user: Any) -> None:
    """Ask for a completion of `LOAD_TOKENS` tokens and read the whole answer."""
    body = {**_BODY, "max_tokens": int(os.environ.get("LOAD_TOKENS", "16")), "stream": _STREAM}
    user.client.post("/v1/completions", json=body)


class FastHttp(FastHttpUser):
    """By geventhttpclient."""

    tasks = (ask,)
    wait_time = _WAIT


class Http(HttpUser):
    """By requests."""

    tasks = (ask,)
    wait_time = _WAIT
