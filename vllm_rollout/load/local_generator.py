"""A load generator on this machine: Locust's processes, in a group that always ends."""

import os
from pathlib import Path
from typing import Self

from vllm_rollout.http_client import trusted_also
from vllm_rollout.load.locust_command import locust_command
from vllm_rollout.load.process_group import ProcessGroup
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.ports import free_port
from vllm_rollout.variables import LOAD_CA_FILE

API_KEY_VARIABLE = "VLLM_ROLLOUT_API_KEY"
_START_SECONDS = 60.0
_LAST_LINES = 15


class LocalGenerator:
    """A `Generator` of `plan.workers` processes. Use it as a context manager.

    Locust's own log is `locust.log` in `work_dir`; `api_key` reaches it through its environment
    only.
    """

    start_seconds = _START_SECONDS
    end_seconds = 15.0
    clock_ahead_seconds = 0.0

    def __init__(self, plan: LoadPlan, *, work_dir: Path, results: Path, api_key: str | None):
        plan_file = work_dir / "plan.json"
        plan_file.write_text(plan.to_json(), encoding="utf-8")
        self._log = work_dir / "locust.log"
        self._locust = ProcessGroup(
            _command(plan, plan_file, results),
            env=_environment(api_key),
            cwd=work_dir,
            log=self._log,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._locust.end()

    def wait(self, seconds: float) -> bool:
        """Wait until Locust exits, `seconds` at most; return whether it has."""
        return self._locust.wait(seconds)

    def problem(self) -> str:
        """Return what was wrong with how Locust ended, or ""."""
        code = self._locust.exit_code
        if not code:
            return ""
        if code < 0:
            return f"the load generator was killed by signal {-code}"
        return f"the load generator ended with exit code {code}"

    def not_started(self, reason: str) -> UnreachableError:
        """Return the error for a load without requests: `reason` and the end of Locust's log."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return UnreachableError(
            "\n".join([reason, *text.splitlines()[-_LAST_LINES:]]),
            address="python -m locust",
            remedy="Fix the error in its last lines. On a busy machine use fewer `load.workers`.",
        )


def _command(plan: LoadPlan, plan_file: Path, results: Path) -> list[str]:
    options = ["--plan", str(plan_file), "--results", str(results)]
    options += ["--end-with-parent", str(os.getpid())]
    if plan.workers > 1:
        port = str(free_port())
        options += ["--processes", str(plan.workers)]
        options += ["--expect-workers-max-wait", f"{_START_SECONDS:.0f}"]
        options += ["--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        options += ["--master-host", "127.0.0.1", "--master-port", port]
    return locust_command(*options)


def _environment(api_key: str | None) -> dict[str, str]:
    """This process's environment, without settings of Locust's that are meant for other runs."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")
    }
    environment.pop(API_KEY_VARIABLE, None)
    if ca_file := trusted_also():
        environment[LOAD_CA_FILE] = ca_file
    if api_key:
        environment[API_KEY_VARIABLE] = api_key
    return environment
