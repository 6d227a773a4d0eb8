"""A bare geventhttpclient loop: `--clients` greenlets that ask as fast as they are answered.

    python benchmarks/load_bare.py http://127.0.0.1:8000 --seconds 5

Prints requests per second. Nothing is measured and nothing of an answer is looked at.
"""

import argparse
import json
import time

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402 - patched first
from geventhttpclient import HTTPClient  # noqa: E402

_BODY = {"model": "llama-2-7b", "prompt": "Write one sentence about the sea.", "max_tokens": 16}


def main() -> None:
    """Parse the command line, ask and count."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    client = HTTPClient.from_url(arguments.url, concurrency=arguments.clients)
    body, headers = json.dumps(_BODY), {"Content-Type": "application/json"}
    begin = time.monotonic()
    end = begin + arguments.seconds
    counts = [0] * arguments.clients

    def ask(index: int) -> None:
        while time.monotonic() < end:
            client.post("/v1/completions", body=body, headers=headers).read()
            counts[index] += 1

    gevent.joinall([gevent.spawn(ask, index) for index in range(arguments.clients)])
    print(sum(counts) / (time.monotonic() - begin))


if __name__ == "__main__":
    main()
