"""Notification channels, and the messages that each receives."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from vllm_rollout.policy.fields import (
    Block,
    Count,
    MayBeOff,
    Name,
    Span,
    Text,
    VariableName,
    broken_rule,
    once_each,
)


class MessageKind(StrEnum):
    """Subject of a message; where it is a decision, the decision's own name."""

    PROMOTION = "promotion"
    """A promotion of a gated build begins: before anything is changed."""
    PROMOTED = "promoted"
    """It is complete, and no trigger fired in the watch."""
    KEPT = "kept"
    """It stays, though a gate after the promotion could not know: page somebody."""
    SETTLED = "settled"
    """A kept build has passed its gates since, or is changed: whoever gets `kept` gets this too."""
    REFUSAL = "refusal"
    """Nothing was promoted: gates, conditions or the world."""
    WAITING = "waiting"
    """The gates passed, and time is missing: a soak, the next window, somebody on call."""
    UNSIGNED = "unsigned"
    """The gates passed, and a person's approval is missing."""
    ROLLBACK = "rollback"
    """A gate failed or a trigger fired; the state before is being restored."""
    ROLLED_BACK = "rolled-back"
    """The state before serves again."""
    ROLLBACK_FAILED = "rollback-failed"
    """Rollback did not restore service: page somebody."""
    BLIND = "blind"
    """The watch has no data of production, or not for every trigger."""
    SEEN = "seen"
    """It has data again; whoever gets `blind` gets this too."""
    LEFT = "left"
    """A run ended with its rollout unfinished."""
    OVERRIDE = "override"
    """A named person had conditions of a promotion passed over."""
    SIGN_OFF = "sign-off"
    """A named person approved evidence."""
    REJECTION = "rejection"
    """A named person refused it."""


_BEGINNINGS = {
    MessageKind.SEEN: MessageKind.BLIND,
    MessageKind.SETTLED: MessageKind.KEPT,
}
"""Of each message that ends an episode the one that began it."""

Kind = Annotated[
    MessageKind, WithJsonSchema({"type": "string", "enum": [kind.value for kind in MessageKind]})
]


class Channel(Block):
    """A channel to people, or to a program."""

    name: Name
    """What evidence and messages call it."""
    kind: Literal["slack", "teams", "webhook", "command"]
    """Slack or Teams by incoming webhook, JSON to any URL, or a command of your own."""
    url_env: VariableName | None = None
    """Environment variable that holds the URL: it is a secret."""
    url_file: Text | None = None
    """File that holds it instead."""
    secret_env: VariableName | None = None
    """Environment variable with the key that signs a webhook's messages."""
    secret_file: Text | None = None
    """File that holds it instead."""
    command: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """A command, word by word, without a shell; it reads the message as JSON from its input."""
    messages: Annotated[tuple[Kind, ...], Field(min_length=1), AfterValidator(once_each)] = tuple(
        MessageKind
    )
    """Messages it receives; all by default."""
    template: Text | None = None
    """File with a Jinja template of the message's text, instead of the suite's own."""

    def wants(self, kind: MessageKind) -> bool:
        """Return whether it receives messages of that kind: with a beginning also its end."""
        return not {kind, _BEGINNINGS.get(kind, kind)}.isdisjoint(self.messages)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "command":
            if self.command is None or self.url_env or self.url_file:
                raise broken_rule("a command has `command` and no URL", "command")
        elif self.command is not None or (self.url_env is None) == (self.url_file is None):
            raise broken_rule(f"{self.kind} needs either url_env or url_file", "kind")
        if self.secret_env and self.secret_file:
            raise broken_rule("give secret_env or secret_file, not both", "secret_env")
        if (self.secret_env or self.secret_file) and self.kind != "webhook":
            raise broken_rule("only a webhook is signed", "kind")
        return self


def _named_once(channels: tuple[Channel, ...]) -> tuple[Channel, ...]:
    once_each(tuple(channel.name for channel in channels))
    return channels


class Notifications(Block):
    """Messages before and after; none of them ever holds a rollout or a rollback up."""

    channels: Annotated[tuple[Channel, ...], AfterValidator(_named_once)]
    """Whom to tell."""
    attempts: Count
    """How often one message is tried, spread over `deadline`."""
    timeout: Span
    """How long one attempt may take."""
    deadline: Span
    """How long all attempts of a message may take, and how long a run's end waits for them."""
    ca_file: Annotated[Text | None, MayBeOff()]
    """Certificates that a URL's own must come from; off means those that the machine trusts."""

    @property
    def timeout_seconds(self) -> float:
        """`timeout` in seconds."""
        return self.timeout.total_seconds()

    @property
    def deadline_seconds(self) -> float:
        """`deadline` in seconds."""
        return self.deadline.total_seconds()
