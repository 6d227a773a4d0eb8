"""Recent log lines of a release's replicas, without the secrets they were given."""

import os
from pathlib import Path

from vllm_rollout.platform.local.logs import log_folder, redact, tail
from vllm_rollout.platform.local.router_control import Routers
from vllm_rollout.platform.local.state import ReplicaRow, State


class ReleaseLogs:
    """Reads the logs of one state directory's replicas."""

    def __init__(self, state_dir: Path, state: State, routers: Routers) -> None:
        self._state_dir = state_dir
        self._state = state
        self._routers = routers

    def read(self, replica: ReplicaRow, *, lines: int) -> str:
        """The last lines of one replica under a heading.

        Where the value of a secret it was given is not known here, nothing is shown: it could not
        be struck out.
        """
        return f"==> {replica.name} <==\n{self._redacted(replica, lines)}"

    def _redacted(self, replica: ReplicaRow, lines: int) -> str:
        revision = self._state.revision(replica.release, replica.revision)
        names = [] if revision is None else revision.values.get("secrets", [])
        sources = (self._routers.environment(replica.release), os.environ)
        hidden: set[str] = set()
        for name in names:
            known = {source[name] for source in sources if source.get(name)}
            if not known:
                return f"(withheld: without {name} in the environment it cannot be struck out)"
            hidden |= known
        path = log_folder(self._state_dir, replica.release) / f"{replica.name}.log"
        return redact("\n".join(tail(path, lines)), hidden)
