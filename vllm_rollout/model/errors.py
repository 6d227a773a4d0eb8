"""Errors of a rollout, sorted by the exit code they end in (see `ExitCode`).

Every error carries what was wrong and what to do next; the command line prints both and
never a traceback for these.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `gate-and-promote` and `vllm-rollout`."""

    OK = 0
    """Done: promoted, or nothing to do; or, with --plan, all gates passed and nothing else stands
    in the way.
    """
    GATE_FAILED = 1
    """A gate failed, QA rejected it, or the platform could not do what was asked; nothing was
    promoted.
    """
    USAGE = 2
    """The command line, the policy, a values file or a name is wrong."""
    INCONCLUSIVE = 3
    """A gate could not know, or something has to be waited for or set (sign-off, soak, window,
    a stage before, another run, a missing key); also with --plan. Nothing was promoted.
    """
    UNREACHABLE = 4
    """The cluster, Helm, Prometheus or the model server could not be reached or seen; the message
    names it. After a promotion: production runs the build and is kept, but has not passed: a
    person is needed.
    """
    ROLLED_BACK = 5
    """Promoted, then a trigger fired or a production gate did not pass, and the previous revision
    serves again. Where the rollback could not be verified, the last line says so.
    """
    NEEDS_PERSON = 6
    """Rollback did not restore service: a person is needed."""
    INTERRUPTED = 130
    """Interrupted by Ctrl-C or SIGTERM; the last line says what state the release is in."""


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
