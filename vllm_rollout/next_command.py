"""Commands printed for a person to type: quoted, with the options of this run."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vllm_rollout.model.deployment import Deployment, short_digest

Option = tuple[str, str]
"""An option of the suite's command lines, and its value."""

_OWN = {name: name for name in ("--policy", "--set", "--platform", "--namespace", "--kube-context")}
_SPELLED_BY = {
    "vllm-rollout": _OWN,
    "gate-and-promote": _OWN,
    "helm": {"--kube-context": "--kube-context"},
    "kubectl": {"--kube-context": "--context"},
    "pytest": {**_OWN, "--set": "--policy-set", "--base-url": "--base-url"},
}
"""How each program spells them; an option that is not named here is not its own."""

_of_this_run: list[Option] = []
_of_promotion: dict[str, Sequence[str]] = {}
"""Further words of the promotion to an environment: they are about no other."""


@contextmanager
def options_of_this_run(options: Sequence[Option]) -> Iterator[None]:
    """Repeat `options` in each command that is printed meanwhile."""
    before = list(_of_this_run)
    _of_this_run[:] = options
    try:
        yield
    finally:
        _of_this_run[:] = before


@contextmanager
def words_of_promotion(environment: str, words: Sequence[str]) -> Iterator[None]:
    """Repeat `words` in each promotion to `environment` that is printed meanwhile."""
    _of_promotion[environment] = words
    try:
        yield
    finally:
        del _of_promotion[environment]


def next_command(program: str, *words: str) -> str:
    """Return the command line for a POSIX shell: `program`, `words`, and this run's options."""
    spelled = _SPELLED_BY[program]
    options = [
        word
        for name, value in _of_this_run
        if (written := spelled.get(name))
        for word in (written, value)
    ]
    return shlex.join([program, *words, *options])


def release_command(verb: str, deployment: Deployment, *words: str) -> str:
    """Return the command of `vllm-rollout` about a deployment's release."""
    where = (deployment.model, "-e", deployment.environment)
    return next_command("vllm-rollout", verb, *where, *words)


def promote_command(model: str, environment: str, *words: str) -> str:
    """Return the command that takes a model to an environment, through the gates before it."""
    further = _of_promotion.get(environment, ())
    return next_command("gate-and-promote", model, "--to", environment, *words, *further)


def sign_off_command(model: str, digest: str, *words: str) -> str:
    """Return the command by which a person signs evidence off; `words` are of who it is."""
    named = evidence_in_commands(digest)
    return next_command("vllm-rollout", "sign-off", model, "--evidence", named, *words)


def evidence_in_commands(digest: str) -> str:
    """Return as much of an evidence's digest as commands name it by."""
    return short_digest(digest, 16)
