"""The policy as a whole: what holds for every model, and what differs for some."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from vllm_rollout.model.deployment import Deployment, canonical_digest, is_label
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.units import AtLeast
from vllm_rollout.policy.conditions import ModelRegistry
from vllm_rollout.policy.fields import (
    Block,
    Confidence,
    Count,
    MayBeOff,
    Name,
    Number,
    ServedName,
    Text,
    TimeLimit,
    UrlPath,
    UrlTemplate,
    VariableName,
    broken_rule,
    once_each,
)
from vllm_rollout.policy.gates import Environment
from vllm_rollout.policy.load_profile import CapacitySearch
from vllm_rollout.policy.notifications import Notifications
from vllm_rollout.policy.platforms import Kubernetes, Local, StartupProbe, guess_parameters
from vllm_rollout.policy.prometheus import Prometheus
from vllm_rollout.policy.ramp import Canary, Ramp, falling_step
from vllm_rollout.policy.signing import EvidenceSigning
from vllm_rollout.policy.validation_errors import did_you_mean
from vllm_rollout.policy.watch import Inconclusive, Triggers, Watch
from vllm_rollout.policy.windows import Windows


class Rules(Block):
    """Everything that may differ from model to model."""

    confidence: Confidence
    """Chance that a percentile or rate verdict is right, for passes and for fails alike."""
    family_risk: Literal["holm", "bonferroni", "none"]
    """How a run's fails share the risk that confidence leaves; with none each has its own."""
    namespace: Name
    """Namespace of the releases."""
    service_url: UrlTemplate
    """Where a deployment is reached; {model}, {environment} and {namespace} are filled in."""
    api_key_env: VariableName
    """Name of the environment variable that holds the bearer key."""
    api: Literal["completions", "chat"]
    """Which endpoint gates, probes and load ask: /v1/completions or /v1/chat/completions."""
    health_path: UrlPath | None = None
    """Path of the health check, from the host's root; /health behind the URL when not given."""
    environments: dict[Name, Environment]
    """What each environment asks for, in order."""
    capacity: CapacitySearch
    """The search for the highest rate at which the SLOs hold."""
    ramp: Ramp
    """Steps by which production is reached."""
    canary: Canary
    """How those steps are made."""
    deploy_timeout: TimeLimit
    """How long a pod, or a local revision, may take to come up; pods that a change replaces one
    after the other have it each. `at least`: longer where their start-up probe gives them more."""
    keep_reports: Annotated[Count | None, MayBeOff()]
    """Runs whose reports stay in the reports folder: the newest, and those that a sign-off or what
    serves goes by; off means all."""
    watch: Watch
    """The watch after promotion."""
    evidence: EvidenceSigning
    """Whether evidence must be signed by the run that made it."""
    inconclusive: Inconclusive
    """Gates of production that are inconclusive once it runs the build."""
    triggers: Triggers
    """Rollback triggers."""
    startup_probe: StartupProbe
    """How long a model may take to load, by its size."""
    model_registry: ModelRegistry
    """The registry by which routers find models."""
    windows: Windows
    """When production may be deployed to."""
    notifications: Notifications
    """Whom a rollout tells what."""
    prometheus: Prometheus
    """Prometheus, where there is one."""

    @model_validator(mode="after")
    def _ramp_only_climbs(self) -> Self:
        last = list(self.environments.values())[-1:]
        by_traffic = self.canary.by == "traffic"
        fall = falling_step(self.ramp, last[0].replicas, by_traffic=by_traffic) if last else ""
        if fall:
            raise broken_rule(f"the ramp goes down: {fall}", "ramp")
        return self

    @model_validator(mode="after")
    def _canary_is_compared(self) -> Self:
        both_serve = [step for step in self.ramp if step.share != 1 and step.hold]
        if self.canary.by == "traffic" and self.canary.compares and not both_serve:
            raise broken_rule(
                "the canary is held against the baseline while both serve, and no step below 100% "
                "is held: give one a hold, or set canary.latency and canary.error_rate to off",
                "ramp",
                "canary",
            )
        return self

    @model_validator(mode="after")
    def _soak_is_observed(self) -> Self:
        for name, environment in self.environments.items():
            soak = environment.soak
            if soak and soak.observed_by == "prometheus" and self.prometheus.url is None:
                raise broken_rule(
                    "the soak is observed by Prometheus, and prometheus.url is off",
                    f"environments.{name}.soak.observed_by",
                    "prometheus.url",
                )
        return self


class ModelRules(Rules):
    """Rules for one model: the policy with the model's own block merged over it."""

    parameters: Annotated[Number, Field(gt=0)] | None = None
    """Billions of parameters; guessed from the model's name when not given."""
    served_as: ServedName | None = None
    """Name that the server knows it by, such as Qwen/Qwen3-8B; the model's own when not given."""


def _values_of(value: Any, ending: str) -> Iterator[str]:
    """The texts under keys that end so, wherever they stand."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str) and str(key).endswith(ending):
                yield inner
            yield from _values_of(inner, ending)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _values_of(inner, ending)


def _answer_times(policy: "Policy") -> Iterator[timedelta]:
    """How long gates, loads and probes wait for an answer, of any model in any environment."""
    for rules in (policy, *policy.models.values()):
        yield rules.watch.probe_timeout
        for environment in rules.environments.values():
            yield environment.load.timeout
            gates = (gate for _, gate in environment.gates)
            yield from (each for gate in gates if (each := getattr(gate, "timeout", None)))


class Policy(Rules):
    """Rules for a deployment's next step. Made by `load_policy`."""

    platform: Literal["kubernetes", "local"]
    """Where releases run."""
    order: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(once_each)]
    """The environments a model passes through, one after the other."""
    kubernetes: Kubernetes
    """Settings of the Kubernetes platform."""
    local: Local
    """Settings of the local platform."""
    ca_file: Annotated[Text | None, MayBeOff()]
    """Certificates of your own authorities, in PEM, trusted beside the well-known ones (or those of
    SSL_CERT_FILE) by every client: gates, load, Prometheus, messages, registries."""
    models: dict[Name, ModelRules]
    """What differs for single models; any other model follows the rest of the policy."""

    @property
    def drain(self) -> timedelta:
        """How long a replica of the local platform may finish answers that are open."""
        given = self.local.drain
        return max([given, *_answer_times(self)]) if isinstance(given, AtLeast) else given

    @property
    def secret_variables(self) -> set[str]:
        """Names of the environment variables that hold keys, tokens and webhook URLs."""
        return set(_values_of(self.model_dump(), "_env"))

    def environment(self, name: str) -> Environment:
        """The environment called `name`.

        Raises:
            UsageError: there is none; the message names the nearest, the remedy all.
        """
        if name in self.environments:
            return self.environments[name]
        raise UsageError(
            f"no environment is called {name!r}{did_you_mean(name, self.order)}",
            remedy=f"Environments of this policy: {', '.join(self.order)}.",
        )

    def deployment(self, model: str, environment: str) -> Deployment:
        """The deployment of `model` in `environment`, in its namespace.

        Raises:
            UsageError: as `environment`, or a name is no DNS-1123 label; where it is one that a
                server gives a model of the policy, the message has the model's own.
        """
        labels = [name for name, rules in self.models.items() if rules.served_as == model]
        if labels and not is_label(model):
            raise UsageError(
                f"{model} is the server's name of a model whose releases go by another",
                remedy=f"Type {' or '.join(labels)} in place of it.",
            )
        own = self.environment(environment).kubernetes
        return Deployment(model, environment, (own and own.namespace) or self.namespace)

    @model_validator(mode="after")
    def _one_place_for_all_models(self) -> Self:
        for model, rules in self.models.items():
            for name, environment in rules.environments.items():
                if name in self.environments and (
                    environment.kubernetes != self.environments[name].kubernetes
                ):
                    raise broken_rule(
                        "an environment is in one cluster and namespace for all models",
                        f"models.{model}.environments.{name}.kubernetes",
                    )
        return self

    def previous(self, environment: str) -> str | None:
        """The environment before `environment`; None for the first.

        Raises:
            UsageError: no environment has that name.
        """
        self.environment(environment)
        at = self.order.index(environment)
        return self.order[at - 1] if at else None

    def ramps_by_traffic(self, environment: str) -> bool:
        """Return True if a ramp there moves users' traffic; users have the last environment."""
        return self.canary.by == "traffic" and environment == self.order[-1]

    def gates_of(self, environment: str) -> tuple[str, ...]:
        """Names of the gates that are run in `environment`, cheap ones first.

        Those that ask Prometheus only where there is one.
        """
        enabled = self.environments[environment].gates.enabled
        return tuple(g for g in enabled if g != "live_metrics" or self.prometheus.url is not None)

    def preflight_of(self, environment: str) -> tuple[str, ...]:
        """Names of the pre-deployment checks made in `environment`; one machine has GPUs alone."""
        preflight = self.environments[environment].preflight
        enabled = preflight.enabled if preflight else ()
        if self.platform == "kubernetes":
            return enabled
        return tuple(name for name in enabled if name == "gpus" and self.local.gpus)

    def for_model(self, model: str) -> "Policy":
        """The policy as it holds for `model`, without the blocks of other models."""
        own = self.models.get(model)
        if own is None:
            return self.model_copy(update={"models": {}})
        rules = {name: getattr(own, name) for name in Rules.model_fields}
        return self.model_copy(update={**rules, "models": {model: own}})

    def sign_off_words(self, environment: str) -> tuple[str, ...]:
        """The options by which a person signs evidence of `environment` off."""
        rules = self.environments[environment].sign_off
        return rules.words if rules else ("--as", "YOUR-NAME")

    def served_name(self, model: str) -> str:
        """The name that requests for `model` carry."""
        own = self.models.get(model)
        return (own.served_as if own else None) or model

    def parameters(self, model: str, *, stated: float | None = None) -> float | None:
        """Billions of parameters of `model`: the policy's number, else what its values `stated`,
        else what its name says; None when unknown.
        """
        own = self.models.get(model)
        return (own.parameters if own else None) or stated or guess_parameters(model)

    def startup_failure_threshold(self, parameters: float | None) -> int | None:
        """failureThreshold of the startup probe for a model of `parameters` billions.

        None when the size is unknown or larger than every row: the policy then has no number,
        and the chart's own values decide.
        """
        return self.startup_probe.failure_threshold(parameters)

    def as_written(self) -> Mapping[str, Any]:
        """Plain JSON data with the policy's own key names and units as people write them."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def ramp_time(self) -> timedelta:
        """How long a ramp takes: its holds, the load of its gates and the watch.

        The time in which replicas come up is not in it.
        """
        last = self.environments[self.order[-1]]
        load = last.load
        duration = load.traffic.profile_duration or load.duration
        loaded = bool(last.gates.on_load)
        gates = load.warmup + duration if loaded else timedelta()
        return sum((step.hold for step in self.ramp), gates + self.watch.duration)

    @property
    def deploy_timeout_seconds(self) -> float:
        """`deploy_timeout` in seconds."""
        return self.deploy_timeout.total_seconds()

    @property
    def digest(self) -> str:
        """Digest of the effective policy: equal for equal rules, however they were written."""
        return canonical_digest(self.as_written())
