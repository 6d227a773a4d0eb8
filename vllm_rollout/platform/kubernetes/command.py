"""Run the `helm` command line and sort what it says into errors."""

import os
import re
import signal
import subprocess
from collections.abc import Sequence

from vllm_rollout.errors import DeployError, RolloutError, UnreachableError, UsageError
from vllm_rollout.platform.redact import redact, secrets_in

_GRACE_SECONDS = 30.0
"""For Helm to mark the release failed after SIGTERM, before it is killed."""

_NO_CLUSTER = re.compile(
    r"cluster unreachable|connection refused|no such host|i/o timeout|TLS handshake timeout"
    r"|couldn't get current server API group list|context .* does not exist",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"Unauthorized|must be logged in|cannot \w+ resource")
_BAD_INPUT = re.compile(
    r"meet the specifications of the schema|execution error at|parse error|template: "
    r"|Chart\.yaml file is missing|failed to parse|error converting YAML|chart\(s\) failed"
)
_URL = re.compile(r"https?://[^\s\"?]+")


class ReleaseNotFoundError(DeployError):
    """Helm knows no such release, or no such revision of it."""


def run(binary: str, arguments: Sequence[str], *, timeout_seconds: float, where: str) -> str:
    """Run `binary` with `arguments` and return its standard output.

    `where` names the cluster in errors. The child ends by SIGTERM when time is up or the caller is
    interrupted, which lets Helm leave a failed release and not a pending one.

    Raises:
        UnreachableError: no such binary, no cluster, or the cluster refuses the credentials.
        UsageError: the chart or its values are wrong.
        ReleaseNotFoundError: there is no such release.
        DeployError: anything else, time included.
    """
    # Helm forgets all but 10 revisions by default, and with them the last good one.
    environment = os.environ | {"HELM_MAX_HISTORY": "0"}
    try:
        process = subprocess.Popen(  # noqa: S603 - an argv list, no shell
            [binary, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            # Ctrl-C reaches us alone, and we end the child in order.
            start_new_session=True,
        )
    except OSError as error:
        raise UnreachableError(
            f"cannot run {binary!r}: {error.strerror or error}",
            address=binary,
            remedy="Install Helm 3 or 4 and put it on PATH, or use the local platform.",
        ) from error
    verb = f"helm {arguments[0]}"
    try:
        out, err = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired as error:
        message = f"{verb} did not return within {timeout_seconds:g} s and was ended"
        raise DeployError(message, remedy="Is the cluster overloaded? Then try again.") from error
    finally:
        if process.poll() is None:
            _end(process)
    if process.returncode != 0:
        complaint = "\n".join([*_findings(out), _complaint(err.decode(errors="replace"))])
        text = redact(complaint.strip(), secrets_in())
        raise _error(verb, text or f"exit code {process.returncode}", where)
    return out.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _findings(stdout: bytes) -> list[str]:
    """What `helm lint` found, which it says on its standard output."""
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
            "gate-and-promote recovers it.",
        )
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
