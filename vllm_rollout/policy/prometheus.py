"""Prometheus, where there is one: what the watch, the soak and a gate may also go by."""

import re
import string
from typing import Annotated

from pydantic import AfterValidator, Field

from vllm_rollout.policy.fields import (
    Block,
    HttpUrl,
    Limit,
    MayBeOff,
    Percentile,
    Span,
    Text,
    VariableName,
    broken_rule,
)
from vllm_rollout.policy.outputs import Pattern

PLACEHOLDERS = ("model", "environment", "namespace", "release")


def _matches(pattern: str, what: str, value: str) -> str:
    if not re.fullmatch(pattern, value):
        raise broken_rule(f"{value!r} is not the name of a {what}")
    return value


MetricName = Annotated[
    str, AfterValidator(lambda value: _matches("[a-zA-Z_:][a-zA-Z0-9_:]*", "metric", value))
]
LabelName = Annotated[
    str, AfterValidator(lambda value: _matches("[a-zA-Z_][a-zA-Z0-9_]*", "label", value))
]


def _label_value(value: str) -> str:
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None}
    except ValueError as error:
        raise broken_rule(f"{value!r}: {error}; write {{{{ and }}}} for braces") from None
    if unknown := sorted(names - set(PLACEHOLDERS)):
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise broken_rule(f"{value!r} names {{{unknown[0]}}}; there are {known}")
    return value


LabelValue = Annotated[str, AfterValidator(_label_value)]
Labels = dict[LabelName, Annotated[LabelValue | None, MayBeOff()]]
"""Label values by name; one that is off is not asked for (a default that does not apply)."""


HeaderText = Annotated[str, Field(pattern=r"^[!-~]([ -~]*[!-~])?$")]


class RequestCounter(Block):
    """A counter of requests, with a label that tells the failed ones."""

    metric: MetricName
    """Its name, for example http_requests_total."""
    labels: Labels = Field(default_factory=dict)
    """Labels its series must have, exactly; {model}, {release} and others are filled in."""
    matching: dict[LabelName, Pattern] = Field(default_factory=dict)
    """Labels whose values must match a regular expression from end to end."""
    status_label: LabelName
    """The label that holds the status."""
    failed: Pattern
    """The statuses that are failures, as a regular expression."""


class PodLabels(Block):
    """Labels by which the series of an exporter are those of a pod."""

    pod: LabelName
    """The label with the pod's name; where there is `exported_` before it, that goes first."""
    namespace: LabelName
    """The label with its namespace, likewise."""
    container: LabelName
    """The label with the container's name, likewise."""
    labels: Labels = Field(default_factory=dict)
    """Labels that its series must have besides; {environment} and others are filled in."""


class Prometheus(Block):
    """Where Prometheus is, and by which labels a deployment is found there."""

    url: Annotated[HttpUrl | None, MayBeOff()]
    """Its address; off means there is none, and nothing here is used."""
    token_env: VariableName
    """Name of the environment variable that holds a bearer token, if one is needed."""
    token_file: Annotated[Text | None, MayBeOff()]
    """File that holds it instead, read again for every question."""
    username: Annotated[Text | None, MayBeOff()]
    """Name for basic authentication; off means that the token is used."""
    password_env: VariableName
    """Name of the environment variable that holds the password of `username`."""
    password_file: Annotated[Text | None, MayBeOff()]
    """File that holds it instead, read again for every question."""
    tenant: Annotated[HeaderText | None, MayBeOff()]
    """Tenant whose metrics are asked for (header X-Scope-OrgID); off sends none."""
    ca_file: Annotated[Text | None, MayBeOff()]
    """Certificates that its own must come from; off means those that the machine trusts."""
    timeout: Span
    """How long an answer may take."""
    max_gap: Span
    """Longer without a scrape, and longer than 2.5 scrape intervals: nothing is known then."""
    labels: Annotated[Labels, Field(min_length=1)]
    """Labels of the deployment's targets, {model} and others filled in; off lets them differ."""
    requests: RequestCounter
    """Requests as the model servers count them; `labels` above are added."""
    gateway: Annotated[RequestCounter | None, MayBeOff()]
    """Requests as a gateway counts them, judged besides; `labels` above are not added."""
    cadvisor: PodLabels
    """CPU, memory and network of pods, as cAdvisor in the kubelet has them (`container_…`)."""
    dcgm: PodLabels
    """GPUs of pods, as NVIDIA's DCGM exporter has them (`DCGM_FI_…`)."""
    kube_state_metrics: PodLabels
    """Readiness, restarts and limits of pods, as kube-state-metrics has them (`kube_pod_…`)."""

    @property
    def timeout_seconds(self) -> float:
        """`timeout` in seconds."""
        return self.timeout.total_seconds()

    @property
    def max_gap_seconds(self) -> float:
        """`max_gap` in seconds."""
        return self.max_gap.total_seconds()


class LiveMetrics(Block):
    """By Prometheus, the requests of users are within the SLO; not run where there is none."""

    window: Span
    """How far back the window reaches; no further than the revision is old."""
    percentile: Percentile
    """Percentile of latency."""
    limit: Span
    """What the percentile must stay below."""
    error_rate: Limit
    """What the share of failed requests must stay below."""

    @property
    def limit_seconds(self) -> float:
        """`limit` in seconds."""
        return self.limit.total_seconds()
