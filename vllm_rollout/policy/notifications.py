"""Notification channels, and the messages that each receives."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from vllm_rollout.policy.fields import (
    Block,
    Count,
    HttpUrl,
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
    STEP = "step"
    """The ramp takes its next step, or the gates or the watch after it begin."""
    ENDED = "ended"
    """A run is over, and no other message says so."""


ENDINGS = frozenset(
    {
        MessageKind.PROMOTED,
        MessageKind.ROLLED_BACK,
        MessageKind.REFUSAL,
        MessageKind.LEFT,
        MessageKind.ENDED,
    }
)
"""Messages after which nothing is being changed, and no person is needed for that."""

_CHANGES = (MessageKind.PROMOTION, MessageKind.ROLLBACK)
_PAGES = (MessageKind.KEPT, MessageKind.ROLLBACK_FAILED, MessageKind.BLIND)
_BEGINNINGS: Mapping[MessageKind, tuple[MessageKind, ...]] = {
    MessageKind.SEEN: (MessageKind.BLIND,),
    MessageKind.SETTLED: (MessageKind.KEPT,),
}
"""Of each message that ends an episode those that began it."""
_ALERTS_ENDED: Mapping[MessageKind, tuple[MessageKind, ...]] = {
    **_BEGINNINGS,
    **dict.fromkeys(ENDINGS, _CHANGES),
    MessageKind.PROMOTED: (*_CHANGES, MessageKind.ROLLBACK_FAILED),
    MessageKind.ROLLED_BACK: (*_CHANGES, MessageKind.ROLLBACK_FAILED),
}
"""The same where each message is an alert, to be closed."""
_STATUS_PAGES, _ON_CALL = ("statuspage", "http"), ("pagerduty", "opsgenie")
_BY_DEFAULT: Mapping[str, tuple[MessageKind, ...]] = {
    **dict.fromkeys(
        _STATUS_PAGES, (*_CHANGES, MessageKind.STEP, MessageKind.ROLLBACK_FAILED, *ENDINGS)
    ),
    **dict.fromkeys(_ON_CALL, (*_CHANGES, *_PAGES)),
}
_OF_ALL = tuple(kind for kind in MessageKind if kind not in (MessageKind.STEP, MessageKind.ENDED))

Kind = Annotated[
    MessageKind, WithJsonSchema({"type": "string", "enum": [kind.value for kind in MessageKind]})
]


class PageRequest(Block):
    """One request to a status page. Path and body are Jinja templates."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    """HTTP method."""
    path: Annotated[str, Field(pattern=r"^([/?]|$)")] = ""
    """What follows the channel's URL; what is filled in is escaped for a URL."""
    body: Text | None = None
    """JSON; what is filled in is escaped for a JSON text."""
    id_from: Text | None = None
    """Where the answer has the id: keys and list positions with dots, such as data.0.id. An opening
    without it has the id that it was sent, `key`."""


class Channel(Block):
    """A channel to people, or to a program."""

    name: Name
    """What evidence and messages call it."""
    kind: Literal[
        "slack", "teams", "webhook", "command", "statuspage", "http", "pagerduty", "opsgenie"
    ]
    """Slack or Teams by incoming webhook, JSON to any URL, a command of your own; a status page
    (Atlassian's, or any by requests of your own); on-call by PagerDuty or Opsgenie."""
    url_env: VariableName | None = None
    """Environment variable that holds the URL: it is a secret."""
    url_file: Text | None = None
    """File that holds it instead."""
    url: HttpUrl | None = None
    """Root of the API of statuspage, pagerduty or opsgenie, where it is not the service's own."""
    secret_env: VariableName | None = None
    """Environment variable with the key that signs a webhook's messages."""
    secret_file: Text | None = None
    """File that holds it instead."""
    key_env: VariableName | None = None
    """Environment variable with the key of the API: of statuspage, pagerduty or opsgenie."""
    key_file: Text | None = None
    """File that holds it instead."""
    headers_env: Mapping[str, VariableName] | None = None
    """Headers of http, each with the environment variable that holds its value."""
    headers_file: Mapping[str, Text] | None = None
    """Headers of http, each with the file that holds its value."""
    command: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """A command, word by word, without a shell; it reads the message as JSON from its input."""
    messages: Annotated[tuple[Kind, ...], Field(min_length=1), AfterValidator(once_each)] | None = (
        None
    )
    """Messages it receives; by default all but `step` and `ended`; of on-call changes, and what
    needs a person. A status page has no choice."""
    environments: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Environments that it hears about; by default all, and of a status page the last."""
    template: Text | None = None
    """File with a Jinja template of the message's text, instead of the suite's own."""
    page_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] | None = None
    """Page of statuspage."""
    opens: Literal["maintenance", "incident"] | None = None
    """What a rollout is on a statuspage; by default a maintenance."""
    components: tuple[Text, ...] | None = None
    """Ids of the components of a statuspage that a rollout is about."""
    open: PageRequest | None = None
    """Request of http that opens an incident or a maintenance."""
    find: PageRequest | None = None
    """Request of http that finds what was opened, by its `key`: asked where the answer to the
    opening was lost. Without it the opening is sent again, with the same Idempotency-Key."""
    update: PageRequest | None = None
    """Request of http at each step; without it there is none."""
    close: PageRequest | None = None
    """Request of http at the end."""

    @property
    def is_page(self) -> bool:
        """True if it is a status page: something is opened there, updated and closed."""
        return self.kind in _STATUS_PAGES

    @property
    def is_on_call(self) -> bool:
        """True if its messages are alerts."""
        return self.kind in _ON_CALL

    def hears_of(self, environment: str, *, serves_users: bool) -> bool:
        """Return whether it hears about that environment, the last one if it `serves_users`."""
        if self.environments is None:
            return serves_users or not self.is_page
        return environment in self.environments

    def wants(self, kind: MessageKind) -> bool:
        """Return whether it receives messages of that kind: with a beginning also its end."""
        return kind in self.chosen or bool(self.ended_by(kind))

    def ended_by(self, kind: MessageKind) -> list[MessageKind]:
        """Return the messages it receives that such a message ends."""
        ends = _ALERTS_ENDED if self.is_on_call else _BEGINNINGS
        return [each for each in ends.get(kind, ()) if each in self.chosen]

    def gives_way(self, kind: MessageKind) -> bool:
        """Return whether a late message of that kind is given up for a newer one. What pages
        somebody is not, nor its end: the newer one may do neither."""
        return not self.is_on_call or kind in _CHANGES

    @property
    def chosen(self) -> tuple[MessageKind, ...]:
        """The messages it receives, but for ends of others of them."""
        return self.messages or _BY_DEFAULT.get(self.kind, _OF_ALL)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "command":
            if self.command is None or self.url_env or self.url_file:
                raise broken_rule("a command has `command` and no URL", "command")
        elif self.command is not None or (
            self.kind not in _SERVICES and (self.url_env is None) == (self.url_file is None)
        ):
            raise broken_rule(f"{self.kind} needs either url_env or url_file", "kind")
        if self.secret_env and self.secret_file:
            raise broken_rule("give secret_env or secret_file, not both", "secret_env")
        if (self.secret_env or self.secret_file) and self.kind != "webhook":
            raise broken_rule("only a webhook is signed", "kind")
        self._own_keys()
        return self

    def _own_keys(self) -> None:
        """Refuse what the kind cannot use, and what it lacks."""
        for key, kinds in _ONLY_OF.items():
            if getattr(self, key) is not None and self.kind not in kinds:
                raise broken_rule(f"{self.kind} has no {key}: it is of {' and '.join(kinds)}", key)
        if self.kind in _SERVICES:
            if sum(map(bool, (self.url, self.url_env, self.url_file))) > 1:
                raise broken_rule("give url, url_env or url_file, not several", "url")
            if bool(self.key_env) == bool(self.key_file):
                raise broken_rule(f"{self.kind} needs either key_env or key_file", "kind")
        if self.kind == "statuspage" and not self.page_id:
            raise broken_rule("statuspage needs page_id", "kind")
        if self.kind == "http" and not (self.open and self.close):
            raise broken_rule("http needs open and close", "kind")
        if self.find and not self.find.id_from:
            raise broken_rule("find needs id_from", "find.id_from")
        if any(request and request.id_from for request in (self.update, self.close)):
            raise broken_rule("only open and find have an id_from", "kind")
        if twice := {*(self.headers_env or ())} & {*(self.headers_file or ())}:
            raise broken_rule(f"{', '.join(sorted(twice))} has two values", "headers_env")
        if self.messages and self.is_page:
            raise broken_rule(
                "a status page is opened, updated and closed: it has no messages", "messages"
            )
        known = _BY_DEFAULT.get(self.kind, ())
        if self.messages and self.is_on_call and (other := set(self.messages) - {*known}):
            raise broken_rule(
                f"{self.kind} takes {', '.join(known)}, and closes them at their end; not "
                + ", ".join(sorted(other)),
                "messages",
            )


_SERVICES = ("statuspage", "pagerduty", "opsgenie")
_ONLY_OF: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("url", "key_env", "key_file"), _SERVICES),
    **dict.fromkeys(("page_id", "opens", "components"), ("statuspage",)),
    **dict.fromkeys(("headers_env", "headers_file", "open", "update", "close", "find"), ("http",)),
}
"""Keys of a channel that only these kinds have."""


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
