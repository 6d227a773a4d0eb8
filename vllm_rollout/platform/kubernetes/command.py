"""Runs the `helm` command line and sorts its output into errors."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Self

from vllm_rollout.model.errors import DeployError, RolloutError, UnreachableError, UsageError
from vllm_rollout.model.text import redact
from vllm_rollout.platform.kubernetes import lease_supervisor
from vllm_rollout.platform.kubernetes.lease_supervisor import ELAPSED
from vllm_rollout.platform.writer import Guard

_GRACE_SECONDS = 30.0
"""For Helm to mark the release failed after SIGTERM, before it is killed."""

_SUPERVISOR = str(lease_supervisor.__file__)
_TELL_SECONDS = 1.0
_PAUSES_SECONDS = (1.0, 2.0, 4.0)

_NO_CLUSTER = re.compile(
    r"cluster unreachable|connection refused|no such host|i/o timeout|TLS handshake timeout"
    r"|couldn't get current server API group list|context .* does not exist",
    re.IGNORECASE,
)
_WEBHOOK = re.compile(
    r"(?:failed calling|failed to call) (?:admission )?webhook(?: \"(?P<name>[^\"]+)\")?"
    r"|conversion webhook for (?P<kind>.+?) failed"
)
"""A webhook of the cluster that is away: the API server itself has answered."""
_DENIED = re.compile(r"admission webhook \".*?\" denied the request")
_BUSY = re.compile(
    r"server is currently unable to handle the request|ServiceUnavailable|TooManyRequests"
    r"|has asked us to try again later|apiserver (?:is )?(?:not ready|shutting down)"
    r"|etcdserver: (?:leader changed|request timed out|too many requests)"
    r"|an error on the server .* has prevented the request from succeeding",
    re.DOTALL,
)
_REFUSED = re.compile(r"Unauthorized|must be logged in|cannot \w+ resource")
_BAD_INPUT = re.compile(
    r"meet the specifications of the schema|execution error at|parse error|template: "
    r"|Chart\.yaml file is missing|failed to parse|error converting YAML|chart\(s\) failed"
)
_URL = re.compile(r"https?://[^\s\"?]+")


class ReleaseNotFoundError(DeployError):
    """Helm knows no such release, or no such revision of it."""


class WebhookError(DeployError):
    """A webhook that the API server asks does not answer it."""


class BusyError(UnreachableError):
    """The API server cannot handle the request at this moment, and may in the next one."""


def webhook_away(text: str) -> str:
    """The webhook that `text` says does not answer; empty where it says none."""
    found = _WEBHOOK.search(text)
    if found is None:
        return ""
    return found["name"] or (f"for the conversion of {found['kind']}" if found["kind"] else "asked")


def webhook_remedy(webhook: str) -> str:
    """Remedy for a webhook that does not answer."""
    return (
        f"The API server is there, its webhook {webhook} is not: bring it back (kubectl get "
        "validatingwebhookconfigurations,mutatingwebhookconfigurations names its service)."
    )


def run(
    binary: str,
    arguments: Sequence[str],
    *,
    timeout_seconds: float,
    where: str,
    environment: Mapping[str, str] | None = None,
    guard: Guard | None = None,
) -> str:
    """Run `binary` with `arguments` and return its standard output.

    `where` names the cluster in errors, `environment` is the child's (None: this one). The child
    ends by SIGTERM when time is up or the caller is interrupted, which lets Helm leave a failed
    release and not a pending one. What changes a release has a `guard`: it is begun only if that
    agrees, and goes on no longer than it does, whatever becomes of this process.

    Raises:
        UnreachableError: no such binary, no cluster, or the cluster refuses the credentials.
        BusyError: the cluster cannot handle it at this moment.
        WebhookError: a webhook of the cluster does not answer.
        UsageError: the chart or its values are wrong.
        ReleaseNotFoundError: there is no such release.
        DeployError: anything else, time included.
        RolloutError: as `guard.ensure`.
    """
    verb = f"helm {arguments[0]}"
    with _Supervisor(guard) if guard else nullcontext() as supervisor:
        process = _start(binary, arguments, environment, supervisor)
        try:
            out, err = _output(process, timeout_seconds, supervisor)
        except subprocess.TimeoutExpired as error:
            message = f"{verb} did not return within {timeout_seconds:g} s and was ended"
            raise DeployError(
                message, remedy="Is the cluster overloaded? Then try again."
            ) from error
        finally:
            if process.poll() is None:
                _end(process)
    if process.returncode != 0:
        if guard is not None:
            guard.ensure()  # a change that was cut short because the lease is lost says so
        complaint = "\n".join([*_findings(out), _complaint(err.decode(errors="replace"))])
        text = redact(complaint.strip())
        raise _error(verb, text or f"exit code {process.returncode}", where)
    return out.decode(errors="replace")


def patiently(
    attempt: Callable[[float], str],
    *,
    timeout_seconds: float,
    again: tuple[type[RolloutError], ...] = (BusyError,),
) -> str:
    """Make an attempt, which is given the seconds that are left, and up to three more while it ends
    in one of `again` and there is time.

    Helm itself asks a busy API server again only where that says when.
    """
    from tenacity import (
        Retrying,
        retry_if_exception_type,
        stop_after_attempt,
        stop_before_delay,
        wait_chain,
        wait_fixed,
    )

    until = time.monotonic() + timeout_seconds
    attempts = Retrying(
        retry=retry_if_exception_type(again),
        stop=stop_after_attempt(len(_PAUSES_SECONDS) + 1) | stop_before_delay(timeout_seconds),
        wait=wait_chain(*map(wait_fixed, _PAUSES_SECONDS)),
        reraise=True,
    )
    return attempts(lambda: attempt(max(until - time.monotonic(), 1.0)))


class _Supervisor:
    """This process's end of a lease supervisor (see the module `lease_supervisor`)."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def __enter__(self) -> Self:
        self._guard.ensure()
        self.pipe, self._ours = os.pipe()
        os.set_blocking(self._ours, False)
        self.tell()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._ours)
        os.close(self.pipe)

    def tell(self) -> None:
        """Send the supervisor the time until which the command may run."""
        now = time.clock_gettime(ELAPSED)  # first, so that a pause here makes it earlier
        with suppress(BlockingIOError):  # a supervisor that is frozen reads what was sent before
            os.write(self._ours, f"{now + self._guard.seconds_left()}\n".encode())


def _start(
    binary: str,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None,
    supervisor: _Supervisor | None,
) -> "subprocess.Popen[bytes]":
    command = [binary, *arguments]
    if supervisor:
        command = [sys.executable, "-I", "-S", _SUPERVISOR, str(supervisor.pipe), *command]
    try:
        return subprocess.Popen(  # noqa: S603 - an argv list, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=[supervisor.pipe] if supervisor else [],
            # Ctrl-C reaches us alone, and we end the child in order.
            start_new_session=True,
        )
    except OSError as error:
        raise UnreachableError(
            f"cannot run {binary!r}: {error.strerror or error}",
            address=binary,
            remedy="Install Helm 3 or 4 and put it on PATH; or gate a server with --base-url URL; "
            "or keep releases on this machine with --platform local.",
        ) from error


def _output(
    process: "subprocess.Popen[bytes]", seconds: float, supervisor: _Supervisor | None
) -> tuple[bytes, bytes]:
    if supervisor is None:
        return process.communicate(timeout=seconds)
    deadline = time.monotonic() + seconds
    while True:
        try:
            return process.communicate(timeout=_TELL_SECONDS)
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                raise
        supervisor.tell()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the supervisor and its command
        process.communicate()


def _findings(stdout: bytes) -> list[str]:
    """Return the findings of `helm lint`, which it prints on its standard output."""
    lines = stdout.decode(errors="replace").splitlines()
    return [line for line in lines if line.startswith(("[ERROR]", "[WARNING]"))]


def _complaint(stderr: str) -> str:
    """The error itself, without the warnings that Helm writes before it."""
    start = re.search(r"^Error: ", stderr, re.MULTILINE)
    return stderr[start.end() :].strip() if start else stderr.strip()


def _error(verb: str, text: str, where: str) -> RolloutError:
    message = f"{verb}: {text}"
    if "release: not found" in text:
        return ReleaseNotFoundError(message)
    if "is in progress" in text:
        return DeployError(
            message,
            remedy="Another client is changing the release, or was killed while it did: the next "
            "deployment, rollout or rollback recovers it.",
        )
    if webhook := webhook_away(text):
        return WebhookError(message, remedy=webhook_remedy(webhook))
    if _DENIED.search(text):
        return DeployError(message, remedy="Satisfy the policy that is named.")
    if _BUSY.search(text):
        return BusyError(message, address=where, remedy="The API server is overloaded: try again.")
    if _NO_CLUSTER.search(text):
        url = _URL.search(text)
        return UnreachableError(
            message,
            address=url.group() if url else where,
            remedy="Check the kube context (--kube-context, KUBECONFIG) and the network.",
        )
    if _REFUSED.search(text):
        return UnreachableError(
            message,
            address=where,
            remedy="Ask for the permission named, or use a context that has it.",
        )
    if _BAD_INPUT.search(text):
        return UsageError(message, remedy="Correct the chart or the values file named.")
    return DeployError(message)
