"""Ports of 127.0.0.1 for processes that are about to be started."""

import random
import socket
from collections.abc import Collection

from vllm_rollout.model.errors import DeployError

LOOPBACK = "127.0.0.1"

# Below the range from which Linux and macOS hand out ports by themselves: between the choice here
# and the bind by a process started later, no outgoing connection or `port 0` server can take it.
_RANGE = range(20_000, 32_000)
_ATTEMPTS = 200


def free_port(taken: Collection[int] = ()) -> int:
    """A port that nothing listens on now and that is not in `taken`.

    Raises:
        DeployError: none was found.
    """
    for port in random.SystemRandom().sample(_RANGE, _ATTEMPTS):
        if port in taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise DeployError(
        f"no free port between {_RANGE.start} and {_RANGE.stop} on {LOOPBACK}",
        remedy="End what occupies them, or run on another machine.",
    )
