"""Verdict on whether a server's `root` is the model that its command line names.

vLLM answers `/v1/models` with the name it was given (`id`) and with what it loaded (`root`): wrong
weights behind the right name show in `root` alone.
"""

import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

from vllm_rollout.model.text import shown
from vllm_rollout.model.verdict import Outcome, Verdict

_SHELLS = ("sh", "bash", "dash", "ash", "zsh")
_UNRESOLVED = ("$", "`", "*")


def model_named_by(command: Sequence[str]) -> str | None:
    """Return the model that a command line of vLLM names; None where that is not known.

    `vllm serve MODEL` names it, and else the last `--model`. A shell's command is read where
    nothing in the name has to be expanded.
    """
    words = list(command)
    while len(words) > 2 and PurePosixPath(words[0]).name in _SHELLS:
        at = next((n for n, word in enumerate(words) if word in ("-c", "-ec", "-lc", "-euc")), None)
        if at is None or at + 1 >= len(words):
            return None
        try:
            words = shlex.split(words[at + 1], comments=True)
        except ValueError:
            return None
        if words[:1] == ["exec"]:
            words = words[1:]
    found = _positional(words) or _option(words)
    return None if not found or any(mark in found for mark in _UNRESOLVED) else found


def _positional(words: Sequence[str]) -> str | None:
    """Return the word behind `serve`, which vLLM takes before any `--model`."""
    for at, word in enumerate(words[:-1]):
        if word == "serve" and at and PurePosixPath(words[at - 1]).name.startswith("vllm"):
            return None if words[at + 1].startswith("-") else words[at + 1]
    return None


def _option(words: Sequence[str]) -> str | None:
    found = None
    for at, word in enumerate(words):
        if word == "--model" and at + 1 < len(words):
            found = words[at + 1]
        elif word.startswith("--model="):
            found = word.partition("=")[2]
    return found


def root_verdict(name: str, root: str | None, commands: Sequence[Sequence[str]]) -> Verdict | None:
    """Fail if the `root` that is served as `name` is not what a replica's command line names.

    None where either is not known. A `root` that only repeats the name, as gateways write it, says
    nothing of what was loaded.
    """
    found = (model_named_by(each) for each in commands)
    named = {shown(model).rstrip("/") for model in found if model}
    if not root or root == shown(name) or not named:
        return None
    same = root.rstrip("/") in named
    wanted = ", ".join(sorted(named))
    return Verdict(
        outcome=Outcome.PASS if same else Outcome.FAIL,
        reason=f"{name} is {root}, as the command line says"
        if same
        else f"wrong weights behind the right name: {name} is {root}, and the command line says "
        f"{wanted}",
        remedy=""
        if same
        else f"Find out which server answers as {name}: it does not serve {wanted}. Look at the "
        "address, the Service's selector and the replicas.",
    )
