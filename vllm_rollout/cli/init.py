"""`vllm-rollout init`."""

import math
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from vllm_rollout.cli import options
from vllm_rollout.model.errors import PolicyError, UsageError
from vllm_rollout.model.units import format_rate, parse_rate
from vllm_rollout.next_command import next_command
from vllm_rollout.policy.load_policy import DEFAULT_FILE, Override, load_policy
from vllm_rollout.resources import DEFAULT_POLICY

_COMMENTS_AT = 44
_REQUESTS = 6_600
"""Enough to show an error rate below 0.1% where two of them fail."""

_TEMPLATE = """\
# yaml-language-server: $schema=rollout.schema.json
# The line above lets an editor complete and check this file; the schema comes from:
#   vllm-rollout policy schema > rollout.schema.json
# Only what differs from the defaults has to be here. All that applies: vllm-rollout policy show

{platform}
environments:
  staging:
    gates:
      latency: {{percentile: 95, limit: 3s}}  # under load
      error_rate: {{limit: 0.1%}}
      load_capacity: {{expected_rate: {rate}}}  # what production has to carry
    load: {{rate: {rate}, duration: {minutes}m}}  # {requests:,} requests: fewer may not show < 0.1%
    soak: {{minimum: 24h}}  # seen healthy for so long; off: no soak
    sign_off: {{valid: 48h}}  # a person reads the outputs first; off: nobody does
  production:
    replicas: {replicas}
    gates:
      smoke: {{url: off}}  # your router's URL, where there is one
    load: {{rate: {half}, duration: {twice}m}}  # beside the traffic of users

# Production is reached in these steps; each is held and watched before the next.
ramp:
  - {{replicas: 1, hold: 1h}}
  - {{share: 50%, hold: 1h}}
  - {{share: 100%, hold: 0s}}

# When production may be deployed to. A rollback never waits.
windows:
  timezone: {timezone}
  days: [monday, tuesday, wednesday, thursday]
  hours: {{from: "09:00", to: "16:00"}}

# A trigger that fires leads to a rollback.
triggers:
  error_rate: {{above: 5%, for: 5m}}
  latency: {{percentile: 95, above: 6s, for: 10m}}

# Users' own requests, where there is a Prometheus; and whom to tell.
# prometheus: {{url: https://prometheus.monitoring:9090}}
# notifications:
#   channels: [{{name: team, kind: slack, url_env: SLACK_WEBHOOK_URL}}]
"""

_PLATFORM = {
    "kubernetes": """\
platform: kubernetes
namespace: {namespace}
""",
    "local": """\
platform: local  # processes of this machine
local: {{startup_timeout: 10m}}  # weights take time to load
""",
}


class _Question(NamedTuple):
    """A question, the key of the policy that its answer is for, and the answer by default."""

    text: str
    key: str
    default: str


_QUESTIONS = {
    "platform": _Question("Where do releases run, kubernetes or local?", "platform", "kubernetes"),
    "namespace": _Question("Namespace of the releases?", "namespace", "system"),
    "rate": _Question(
        "Requests that production is expected to carry?",
        "environments.staging.gates.load_capacity.expected_rate",
        "10/s",
    ),
    "replicas": _Question("Replicas of production?", "environments.production.replicas", "4"),
    "timezone": _Question("Time zone of the deployment windows?", "windows.timezone", "UTC"),
}


def _option(name: str, metavar: str) -> str | None:
    default = _QUESTIONS[name].default
    text = _QUESTIONS[name].text.rstrip("?")
    help_text = f"{text[0].lower()}{text[1:]} (default: asked for; {default} with --yes)"
    found: str | None = typer.Option(f"--{name}", metavar=metavar, help=help_text)
    return found


def init_command(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="file to write")] = DEFAULT_FILE,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="ask nothing, take defaults")] = False,
    platform: Annotated[str | None, _option("platform", "NAME")] = None,
    namespace: Annotated[str | None, _option("namespace", "NAME")] = None,
    rate: Annotated[str | None, _option("rate", "RATE")] = None,
    replicas: Annotated[str | None, _option("replicas", "NUMBER")] = None,
    timezone: Annotated[str | None, _option("timezone", "NAME")] = None,
) -> None:
    """Write a first rollout.yaml, with comments, for a team to change.

    Asks what no option gives. A file that is there is never overwritten.
    """
    with options.errors_shown():
        if os.path.lexists(file):
            raise UsageError(
                f"{file} is there already, and was left as it is",
                remedy="Name another: "
                + next_command("vllm-rollout", "init", "another.yaml")
                + ". What applies now is printed by: "
                + next_command("vllm-rollout", "policy", "show", "--policy", str(file)),
            )
        answer = partial(_answer, ask=not yes)
        where = answer("platform", platform)
        space = answer("namespace", namespace) if where == "kubernetes" else ""
        text = policy_text(
            platform=where,
            namespace=space,
            rate=answer("rate", rate),
            replicas=answer("replicas", replicas),
            timezone=answer("timezone", timezone),
        )
        with file.open("x", encoding="utf-8") as written:
            written.write(text)
        options.say(f"wrote {file}: read it, change what differs for you")
        options.say("next: vllm-rollout deploy MODEL --values values.yaml")


def policy_text(*, platform: str, namespace: str, rate: str, replicas: str, timezone: str) -> str:
    """The file's text, with a load that is long enough for its limits."""
    per_second = parse_rate(rate)
    minutes = math.ceil(_REQUESTS / per_second / 60)
    text = _TEMPLATE.format(
        platform=_PLATFORM[platform].format(namespace=namespace),
        rate=rate,
        minutes=minutes,
        requests=round(minutes * 60 * per_second),
        half=format_rate(per_second / 2),
        twice=2 * minutes,
        replicas=replicas,
        timezone=timezone,
    )
    lines = (line.partition("  # ") for line in text.splitlines())
    return "".join(
        f"{key:<{_COMMENTS_AT}}  # {comment}\n" if comment else f"{key}\n"
        for key, _, comment in lines
    )


def _answer(name: str, given: str | None, *, ask: bool) -> str:
    question = _QUESTIONS[name]
    if given is None and ask:
        try:
            return str(typer.prompt(question.text, question.default, value_proc=_asked(name)))
        except typer.Abort:
            raise UsageError(
                "nothing was written", remedy="Answer the questions, or add --yes."
            ) from None
    return question.default if given is None else _checked(name, given)


def _asked(name: str) -> Callable[[str], str]:
    def checked(text: str) -> str:
        try:
            return _checked(name, text)
        except PolicyError as error:
            wrong = str(error).removeprefix(f"--{name}: {_QUESTIONS[name].key}: ")
            raise typer.BadParameter(wrong) from None

    return checked


def _checked(name: str, text: str) -> str:
    if not re.fullmatch(r"[\w./+-]+", text):
        raise PolicyError(f"--{name}: {text!r} is more than one word", remedy="Write one word.")
    key = _QUESTIONS[name].key
    load_policy(DEFAULT_POLICY, overrides={key: Override(text, f"--{name}")})
    return text
