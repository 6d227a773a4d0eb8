"""Conditions of a promotion besides gates: preflight checks, soak, sign-off, registration."""

import string
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from vllm_rollout.model.units import format_duration
from vllm_rollout.policy.fields import Block, Duration, MayBeOff, Span, Switch, Text, broken_rule
from vllm_rollout.policy.signing import Keys, Oidc


class Preflight(Block):
    """The pre-deployment checks; each is an item of the gate `preflight`."""

    chart: Switch
    """The chart passes `helm lint --strict`."""
    templates: Switch
    """The templates render with the environment's values."""
    values: Switch
    """The values are of this model, and the overlay leaves the build alone."""
    namespace: Switch
    """The namespace is there."""
    gpus: Switch
    """Nodes have room for every pod, the surge of a rolling update included."""
    quota: Switch
    """The namespace's quotas leave room, for the objects of the way back too."""
    admission: Switch
    """The API server admits every object and its pods, in a dry run."""
    image: Switch
    """Every image is in its registry, and its digest is known."""
    model: Switch
    """The model is on Hugging Face and the pods may read it."""
    volumes: Switch
    """The claims, Secrets and ConfigMaps that pods need are there, claims bound."""

    @property
    def enabled(self) -> tuple[str, ...]:
        """Names of the checks that are made."""
        return tuple(name for name in type(self).model_fields if getattr(self, name))


class Soak(Block):
    """How long a revision stays unchanged and healthy before the next environment."""

    minimum: Duration
    """The least time it was seen healthy."""
    maximum: Duration
    """After this its evidence is stale."""
    observed_by: Literal["auto", "prometheus", "samples", "age"]
    """Who sees it: Prometheus, samples (`vllm-rollout soak`, `watch`), nobody (age), or auto."""
    grace: Duration
    """Unhealthy for longer, and the soak restarts, as it does after a restart."""
    max_gap: Span
    """Not observed for longer, and that time does not count."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.minimum > self.maximum:
            least, most = format_duration(self.minimum), format_duration(self.maximum)
            raise broken_rule(
                f"minimum ({least}) is longer than maximum ({most})", "minimum", "maximum"
            )
        return self


class SignOff(Block):
    """A named person has read the evidence and approves of it."""

    valid: Span
    """How old the evidence may be; a soak's maximum limits it too."""
    identity: Literal["name", "key", "oidc"] = "name"
    """What proves whose word it is: nothing but the name, a key's signature, or a CI's token."""
    keys: Keys = Field(default_factory=dict)
    """Public keys of those who sign off, by name; for `identity: key`."""
    oidc: Annotated[Oidc | None, MayBeOff()] = None
    """Tokens of those who sign off; for `identity: oidc`."""

    @model_validator(mode="after")
    def _names_who_may_sign(self) -> Self:
        if self.identity == "key" and not self.keys:
            raise broken_rule("identity is key, and no key is named", "identity", "keys")
        if self.identity == "oidc" and self.oidc is None:
            raise broken_rule("identity is oidc, and oidc is off", "identity", "oidc")
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """The options by which a person gives a word of that kind."""
        return {"name": ("--as", "YOUR-NAME"), "key": ("--key", "FILE"), "oidc": ()}[self.identity]


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
