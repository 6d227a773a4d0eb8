"""Content of a notification, its text, and its format for Slack, Teams and webhooks."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_rollout.model.errors import UsageError
from vllm_rollout.policy.notifications import MessageKind

if TYPE_CHECKING:
    from jinja2 import Template

_HEADLINES = {
    MessageKind.PROMOTION: "Promotion of {model} to {environment} begins",
    MessageKind.PROMOTED: "{model} is promoted to {environment}",
    MessageKind.REFUSAL: "{model} is not promoted to {environment}",
    MessageKind.WAITING: "{model} waits before {environment}",
    MessageKind.UNSIGNED: "{model} needs a sign-off before {environment}",
    MessageKind.ROLLBACK: "{model} in {environment} is being rolled back",
    MessageKind.ROLLED_BACK: "{model} in {environment} is rolled back",
    MessageKind.ROLLBACK_FAILED: "A PERSON IS NEEDED: {model} in {environment} is not rolled back",
    MessageKind.KEPT: "A PERSON IS NEEDED: {model} in {environment} is kept, and not all was seen",
    MessageKind.SETTLED: "{model} in {environment} is no longer kept without a pass of its gates",
    MessageKind.BLIND: "The watch over {model} in {environment} sees nothing",
    MessageKind.SEEN: "The watch over {model} in {environment} has its data again",
    MessageKind.LEFT: "The rollout of {model} to {environment} is unfinished",
    MessageKind.OVERRIDE: "Conditions of {model}'s promotion to {environment} are passed over",
    MessageKind.SIGN_OFF: "The evidence of {model} for {environment} is signed off",
    MessageKind.REJECTION: "The evidence of {model} for {environment} is rejected",
    MessageKind.STEP: "The rollout of {model} to {environment} goes on",
    MessageKind.ENDED: "The rollout of {model} to {environment} is over",
}
_LONGEST_TEXT = 2500
"""Slack takes 3,000 characters in a section."""
_LONGEST_NAME = 150
_LONGEST_EVENT = 1400
"""Of these the text is made: its end, with the command to type, must not be cut for the others."""
_CUT = " […] "
_NOT_SENT = ("subject", "rollout", "expected")
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message.

    `text` is the event; `build` the build's short digest or ""; `missed` are earlier messages that
    did not arrive, a line for each. `subject` takes the place of the kind's own headline. `rollout`
    is the run that began what `run_id` goes on with; empty for itself. `expected` is how long a
    rollout holds its steps and watches.
    """

    kind: MessageKind
    model: str
    environment: str
    text: str
    run_id: str
    who: str
    reason: str
    build: str
    at: datetime
    missed: tuple[str, ...] = ()
    subject: str = ""
    rollout: str = ""
    expected: timedelta = timedelta()

    @property
    def headline(self) -> str:
        """Subject, in one line."""
        about = {"model": self.model, "environment": self.environment}
        return self.subject or _HEADLINES[self.kind].format(**about)

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON-ready data."""
        data = {**asdict(self), "at": self.at.isoformat(), "headline": self.headline}
        return {name: data[name] for name in data if name not in _NOT_SENT}


def rendered(message: Message, *, template: Path | None, kind: str) -> bytes:
    """Return the body to post. `template` makes the text; None for the suite's own.

    Values in a template for Slack are escaped, so that no output of a model or a pod becomes a link
    or calls a channel; the template itself may.

    Raises:
        UsageError: the template cannot be read or used.
    """
    text = text_of(message, template, _slack_text if kind == "slack" else str)
    if kind == "slack":
        return json_body(
            {
                "text": _slack_text(message.headline),
                "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": text}}],
            }
        )
    if kind == "teams":
        return json_body(_card(text))
    return json_body({**message.as_json(), "message": text})


def text_of(message: Message, template: Path | None, escape: Callable[[str], str] = str) -> str:
    """Return its text, with the messages that did not arrive before.

    Raises:
        UsageError: the template cannot be read or used.
    """
    text = _filled_in(message, template, "message.txt.jinja", escape)
    # Whatever the template is: nobody may have heard of them.
    missed = "".join(f"\nNot delivered before: {line}" for line in message.missed)
    after = shortened(escape(missed), _LONGEST_TEXT // 4)
    return shortened(text, _LONGEST_TEXT - len(after)) + after


def page_text(message: Message, template: Path | None) -> str:
    """Return its text for a status page: by default nothing but what everybody may read.

    Raises: as `text_of`.
    """
    return shortened(_filled_in(message, template, "page.txt.jinja", str), _LONGEST_TEXT)


def _filled_in(
    message: Message, template: Path | None, default: str, escape: Callable[[str], str]
) -> str:
    try:
        source = (template or _TEMPLATES / default).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(f"the message template {template}", error) from error
    return filled(source, message, escape, what=f"the message template {template}").strip()


def filled(
    source: str, message: Message, escape: Callable[[str], str], /, *, what: str, **more: str
) -> str:
    """Return the Jinja template `source` with the message and `more` filled in, each value escaped.

    Raises:
        UsageError: it cannot be used; `what` names it.
    """
    from jinja2 import TemplateError

    values = {
        name: shortened(value, _LONGEST_EVENT if name == "text" else _LONGEST_NAME)
        for name, value in message.as_json().items()
        if isinstance(value, str)
    }
    about = {"kind": message.kind.value, "missed": list(message.missed)}
    try:
        return str(_compiled(source, escape).render({**values, **about, **more}))
    except (TemplateError, TypeError, ValueError) as error:
        raise _unusable(what, error) from error


@lru_cache(maxsize=32)
def _compiled(source: str, escape: Callable[[str], str]) -> "Template":
    """Compiled once: it takes a hundred times as long as filling it in."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from markupsafe import Markup

    def escaped(value: object) -> object:
        # What a filter such as tojson has escaped is escaped.
        plain = isinstance(value, str) and not isinstance(value, Markup)
        return escape(str(value)) if plain else value

    return ImmutableSandboxedEnvironment(
        autoescape=False, finalize=escaped, undefined=StrictUndefined, trim_blocks=True
    ).from_string(source)


def _unusable(what: str, error: Exception) -> UsageError:
    return UsageError(
        f"{what} cannot be used: {error}",
        remedy="Filled in are kind, headline, text, model, environment, run_id, who, reason, "
        "build, at and missed.",
    )


def shortened(text: str, longest: int) -> str:
    """Return `text` with at most `longest` characters: without its middle where it is longer."""
    if len(text) <= longest:
        return text
    half = (longest - len(_CUT)) // 2
    # What is escaped is cut between characters, not within one.
    first = re.sub(r"&[a-z]{0,3}$", "", text[:half])
    return first + _CUT + re.sub(r"^[a-z]{0,3};", "", text[-half:])


def _slack_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _card(text: str) -> dict[str, Any]:
    """Return an Adaptive Card for Teams' workflows; a text run is never read as Markdown."""
    first, *rest = text.splitlines() or [""]
    lines = [{"type": "TextRun", "text": first, "weight": "Bolder"}]
    blocks = [lines, *([{"type": "TextRun", "text": line}] for line in rest if line)]
    return {
        "type": "message",
        "attachments": [
            {
                "contentType": "application/vnd.microsoft.card.adaptive",
                "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "type": "AdaptiveCard",
                    "version": "1.4",
                    "body": [{"type": "RichTextBlock", "inlines": block} for block in blocks],
                },
            }
        ],
    }


def json_body(data: Any) -> bytes:
    """Return the body of a request."""
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")
