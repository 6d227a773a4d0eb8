"""Errors of a rollout, sorted by the exit code they end in (see `ExitCode`).

Every error carries what was wrong and what to do next; the command line prints both and
never a traceback for these.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `gate-and-promote` and `vllm-rollout`."""

    OK = 0
    """Promoted, or every gate passed with --plan."""
    GATE_FAILED = 1
    """A gate failed; nothing was promoted."""
    USAGE = 2
    """The command line, the policy file or a name is wrong."""
    INCONCLUSIVE = 3
    """A gate could not know; nothing was promoted."""
    UNREACHABLE = 4
    """The cluster, Helm, Prometheus or the model server could not be reached or seen; after a
    promotion: it is kept, and has not passed.
    """
    ROLLED_BACK = 5
    """Promoted, then a trigger fired, and the previous revision serves again."""
    NEEDS_PERSON = 6
    """Rollback did not restore service."""
    INTERRUPTED = 130
    """Ctrl-C; the last line printed says what state the release is in."""


class RolloutError(Exception):
    """Base of every expected error: what was wrong (`str(error)`) and what to do (`remedy`)."""

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class UsageError(RolloutError):
    """A wrong option, name or file."""


class PolicyError(UsageError):
    """A policy file that cannot be used; the message names file, line and key."""


class UnreachableError(RolloutError):
    """Something outside did not answer: `address` is what was tried."""

    exit_code = ExitCode.UNREACHABLE

    def __init__(self, message: str, *, address: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.address = address


class AccessError(UnreachableError):
    """Something outside refuses the credentials or the right: asking again soon is no use."""


class DeployError(RolloutError):
    """The platform was reached and could not do what was asked (timeout, crash, refused)."""

    exit_code = ExitCode.GATE_FAILED
