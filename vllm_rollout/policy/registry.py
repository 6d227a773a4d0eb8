"""Model registry of the routers, by commands of the team's own."""

import string
from typing import Annotated

from pydantic import AfterValidator, Field

from vllm_rollout.policy.fields import Block, MayBeOff, Span, Text, broken_rule

PLACEHOLDERS = ("model", "environment", "namespace", "url", "revision", "build")


def _command(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(word) if name is not None]
        except ValueError as error:
            raise broken_rule(f"{word!r}: {error}; write {{{{ and }}}} for braces") from None
        unknown = sorted(set(names) - set(PLACEHOLDERS))
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise broken_rule(f"{word!r} names {{{unknown[0]}}}; there are {known}")
    if "{" in words[0]:
        raise broken_rule("the command itself must be written out")
    return words


Command = Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(_command)]
"""A command, word by word; placeholders in braces are filled in. No shell reads it."""


class ModelRegistry(Block):
    """Commands that register a deployment, and that query the registry."""

    register_command: Annotated[Command | None, MayBeOff()]
    """Registers a deployment once it serves; run again after a rollback. It must end with 0."""
    status_command: Annotated[Command | None, MayBeOff()]
    """Says what is registered; its last line is shown by `vllm-rollout status`."""
    timeout: Span
    """How long either may take."""
