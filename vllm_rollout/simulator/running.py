"""A simulator in a process of its own, for tests, demos and benchmarks."""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vllm_rollout.model.errors import DeployError, UnreachableError, UsageError

_READY = "listening on "
_END_SECONDS = 5.0
_ROOT = Path(__file__).resolve().parents[2]


class RunningSimulator:
    """Starts a simulator on a free port of 127.0.0.1 and ends it with the `with` block.

    `options` are the command's, underscores for hyphens (`model="llama-2-7b"`, `max_num_seqs=2`,
    `hang=True`); `api_keys` travel in the environment. The process also ends when the one that
    started it does, however that happens.

    Raises:
        DeployError: it was not listening within `ready_timeout_seconds`.
    """

    def __init__(
        self, *, api_keys: str = "", ready_timeout_seconds: float = 60.0, **options: Any
    ) -> None:
        self._api_keys = api_keys
        self._ready_timeout_seconds = ready_timeout_seconds
        self._options = {"port": 0, **options}
        self._url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Base URL, without a trailing slash."""
        return self._url

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process; it may have ended."""
        if self._process is None:
            raise DeployError("the simulator was not started", remedy="Use it in a with statement.")
        return self._process

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    def start(self) -> None:
        """Start the process and wait until it listens."""
        # The child finds the package where this process found it, wherever it is started.
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": path, "VLLM_API_KEY": self._api_keys}
        with tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                [sys.executable, "-m", "vllm_rollout.simulator", *self._arguments()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
            line = self._first_line()
            if not line.startswith(_READY):
                self.close()
                errors.seek(0)
                output = errors.read().decode(errors="replace").strip()
                raise DeployError(
                    f"the simulator was not listening within {self._ready_timeout_seconds:g} s"
                    f" (exit code {self.process.returncode}): {output or line}",
                    remedy="Check its options with python -m vllm_rollout.simulator --help.",
                )
        self._url = line.removeprefix(_READY).strip()

    def turn(self, **dials: Any) -> dict[str, Any]:
        """Turn dials while it runs; return all dials.

        Raises:
            UsageError: a dial that does not exist, or a value it cannot take.
            UnreachableError: the simulator does not answer.
        """
        answer = self.request("PATCH", "/simulator/dials", dials)
        return dict(answer)

    def truth(self) -> dict[str, Any]:
        """Return the recorded times of each request (`GET /simulator/truth`)."""
        return dict(self.request("GET", "/simulator/truth"))

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Call one of the simulator's own JSON routes."""
        request = urllib.request.Request(  # noqa: S310 - our own http address
            self.url + path, method=method, data=None if body is None else json.dumps(body).encode()
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - likewise
                text = answer.read()
        except urllib.error.HTTPError as error:
            answered = json.loads(error.read())
            remedy = f"The dials are {', '.join(answered.get('valid', ()))}."
            raise UsageError(f"wrong dial: {answered.get('error')}", remedy=remedy) from None
        except OSError as error:
            raise UnreachableError(
                f"the simulator does not answer: {error}", address=self.url + path
            ) from None
        return json.loads(text) if text else None

    def close(self) -> None:
        """End the process, and nothing else. Closing twice is no error."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _arguments(self) -> list[str]:
        arguments = ["--end-with-stdin"]
        for name, value in self._options.items():
            option = "--" + name.replace("_", "-")
            if value is True:
                arguments.append(option)
            elif value is not None and value is not False:
                arguments.append(f"{option}={value}")
        return arguments

    def _first_line(self) -> str:
        """The first line printed; empty when the process ends or the time is over."""
        pipe = self.process.stdout
        assert pipe is not None  # noqa: S101 - asked for above
        deadline = time.monotonic() + self._ready_timeout_seconds
        text = b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not text.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return ""
                read = os.read(pipe.fileno(), 4096)
                if not read:
                    return text.decode(errors="replace")
                text += read
        return text.decode(errors="replace")
