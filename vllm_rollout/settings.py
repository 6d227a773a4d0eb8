"""From options, environment variables and policy files to what a run works with.

Precedence: option, environment variable (`VLLM_ROLLOUT_*`), policy file, default.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_rollout.http_client import trust_also
from vllm_rollout.model.deployment import Deployment, is_label, label_for
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_pods import LoadPods
from vllm_rollout.model.text import own_secret
from vllm_rollout.platform.base import PathErrors, Route
from vllm_rollout.platform.reader import ReleaseReader, at_home
from vllm_rollout.platform.writer import ReleaseWriter
from vllm_rollout.policy import Override, Policy, load_policy
from vllm_rollout.policy.fields import Confidence
from vllm_rollout.resources import CHARTS
from vllm_rollout.variables import option_or_environment, report_folder, variable_of

if TYPE_CHECKING:
    from vllm_rollout.observe.client import InferenceClient
    from vllm_rollout.platform.kubernetes import StartUpOf

_MOST_WORKERS = 1000
_API_PATH = re.compile(r"/v1(/(chat/)?completions|/models)?/*$")
_HTTP_URL = re.compile(r"https?://[^/?#\s]", re.IGNORECASE)
_SWITCH = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a run. `platform` is None when only a URL is known, not a release.

    `workers` and `load_in_cluster` are options that go over the policy's `load.workers` and
    `load.where`; `confidence` is one that goes over the policy's.
    """

    policy: Policy
    platform: ReleaseReader | None
    base_url: str | None
    report_dir: Path
    kube_context: str | None = None
    workers: int | None = None
    load_in_cluster: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    """The label that each served name among the models asked for goes by."""
    note: str = ""
    """What was made of the options otherwise than they were typed; else empty."""
    confidence: float | None = None

    def judged_by(self, model: str) -> Policy:
        """The policy for a model, with the confidence by which verdicts of this run are judged.

        Raises:
            UsageError: `--confidence` is lower than the policy's.
        """
        policy = self.policy.for_model(model)
        if self.confidence is None:
            return policy
        if self.confidence < policy.confidence:
            raise UsageError(
                f"--confidence {self.confidence:g} is lower than the policy's",
                remedy=f"Give {policy.confidence:g} or more, or change `confidence` in the policy.",
            )
        return policy.model_copy(update={"confidence": self.confidence})

    @property
    def api_key(self) -> str | None:
        """The bearer key, from the environment variable the policy names."""
        return os.environ.get(self.policy.api_key_env) or None

    def deployment(self, model: str, environment: str) -> Deployment:
        """The deployment of `model` in `environment`.

        Raises:
            UsageError: a name is not a DNS-1123 label, or the policy has no such environment.
        """
        return self.policy.deployment(model, environment)

    def at_home(self, environment: str) -> "Settings":
        """The settings of a run that changes `environment`: it keeps what it does there."""
        if self.platform is None:
            return self
        return replace(self, platform=at_home(self.platform, environment))

    def url_of(self, deployment: Deployment) -> str:
        """Return the deployment's URL: `--base-url`, or the platform's."""
        if self.base_url:
            return self.base_url.rstrip("/")
        return self.reader().base_url(deployment)

    def client(self, url: str, deployment: Deployment, *, fresh: bool = False) -> "InferenceClient":
        """Return a client of the deployment's servers at `url`; `fresh` as the client has it."""
        from vllm_rollout.observe.client import InferenceClient

        policy = self.policy.for_model(deployment.model)
        return InferenceClient(
            url,
            model=policy.served_name(deployment.model),
            api_key=self.api_key,
            key_variable=policy.api_key_env,
            health_path=policy.health_path,
            api=policy.api,
            fresh=fresh,
        )

    def route_to(self, deployment: Deployment) -> Route:
        """Return the address for display and how it is reached."""
        if self.base_url:
            return Route(url=self.base_url.rstrip("/"), how="by --base-url")
        return self.reader().route(deployment)

    def path_errors(self, deployment: Deployment) -> PathErrors:
        """Return the connectivity errors on the path to it; none where there is only a URL."""
        return self.platform.path_errors(deployment) if self.platform else PathErrors()

    def load_pods(self, deployment: Deployment) -> LoadPods | None:
        """The pods that make the deployment's load; None where processes here make it.

        Raises:
            UsageError: the platform has no cluster to make load in.
        """
        load = self.policy.for_model(deployment.model).environments[deployment.environment].load
        if not self.load_in_cluster and load.where == "here":
            return None
        if self.policy.platform != "kubernetes":
            raise UsageError(
                f"load cannot be made in the cluster: the platform is {self.policy.platform}",
                remedy="Leave --load-in-cluster out (and `load.where: here`); --workers N makes "
                "it with more processes.",
            )
        return make_load_pods(
            self.policy,
            deployment,
            kube_context=_context_of(self.policy, deployment.environment, self.kube_context),
            has_key=self.api_key is not None,
        )

    def load_url_of(self, deployment: Deployment, pods: LoadPods | None) -> str:
        """Return the URL for load: `url_of`'s, or the name that `pods` know it by."""
        return self.url_of(deployment) if pods is None else self.route_to(deployment).url

    def reader(self) -> ReleaseReader:
        """The releases, to be read; `platform.writer.writer_of` is for who changes them.

        Raises:
            UsageError: only a URL was given.
        """
        if self.platform is None:
            raise UsageError(
                "this needs a platform, and only --base-url was given",
                remedy="Add --platform kubernetes or --platform local.",
            )
        return self.platform


def load_settings(
    *,
    policy_file: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    platform: str | None = None,
    namespace: str | None = None,
    kube_context: str | None = None,
    base_url: str | None = None,
    report_dir: str | None = None,
    workers: str | int | None = None,
    load_in_cluster: bool = False,
    confidence: str | None = None,
    needs_platform: bool = False,
    models: Sequence[str] = (),
) -> Settings:
    """Resolve the settings of a run; each argument is the option of that name, or None.

    `models` are those asked for: a name that only a server has gets a label to go by, `labels`.

    With `base_url` and no explicit platform there is none (unless `needs_platform`): a URL alone
    says nothing of replicas and revisions.

    Raises:
        PolicyError: a policy file or override is wrong.
        UsageError: another option is.
    """
    changes = dict(overrides or {})
    platform = option_or_environment("platform", platform)
    if platform:
        changes["platform"] = Override(platform, "--platform")
    if chosen_namespace := option_or_environment("namespace", namespace):
        changes["namespace"] = Override(chosen_namespace, "--namespace")
    file = option_or_environment("policy", policy_file)
    policy = load_policy(Path(file) if file else None, overrides=changes)
    url = option_or_environment("base-url", base_url)
    is_url_only = bool(url) and not (needs_platform or platform)
    labels = _labels(policy, models, is_url_only=is_url_only)
    if added := {name for name, label in labels.items() if policy.served_name(label) != name}:
        for name in added:
            key = f"models.{labels[name]}.served_as"
            changes[key] = Override(name, "--model")
        policy = load_policy(Path(file) if file else None, overrides=changes)
    for variable in policy.secret_variables:
        own_secret(os.environ.get(variable, ""))
    if url and not _HTTP_URL.match(url):
        raise UsageError(
            f"--base-url {url!r} is not an http(s) URL", remedy="For example http://127.0.0.1:8000."
        )
    if url and "@" in url:
        raise UsageError(
            "--base-url holds a user name or password",
            remedy=f"Put the key into the environment variable {policy.api_key_env}.",
        )
    typed, url = url, _without_api_path(url)
    try:
        trust_also(policy.ca_file)
    except OSError as error:
        raise UsageError(
            f"ca_file {policy.ca_file} cannot be used: {error}",
            remedy="Name a file with certificates in PEM, or set `ca_file: off`.",
        ) from error
    context = option_or_environment("kube-context", kube_context)
    reached = None
    if not is_url_only:
        context = context or _current_context(policy)
        reached = make_platform(policy, kube_context=context)
    return Settings(
        policy=policy,
        platform=reached,
        base_url=url,
        labels=labels,
        note=_taken_off(typed, url),
        report_dir=report_folder(report_dir),
        kube_context=context,
        workers=_workers(option_or_environment("workers", str(workers) if workers else None)),
        load_in_cluster=load_in_cluster or _switched_on("load-in-cluster"),
        confidence=_confidence(confidence),
    )


def _labels(policy: Policy, models: Sequence[str], *, is_url_only: bool) -> dict[str, str]:
    """Return the label of each of `models` that is a served name, and no label itself.

    The policy's, where it has one that is `served_as` so; else one made of it, where no release is
    asked for: releases are named by labels.

    Raises:
        UsageError: two names would go by one label, or the label's model is served otherwise.
    """
    found: dict[str, str] = {}
    known = {rules.served_as: label for label, rules in policy.models.items() if rules.served_as}
    for name in dict.fromkeys(models):
        if name in known and not is_label(name):
            found[name] = known[name]
        elif is_url_only and not is_label(name):
            label = label_for(name)
            served = policy.models[label].served_as if label in policy.models else None
            if label in found.values() or label in models or served:
                raise UsageError(
                    f"{name} would go by the name {label}, which stands for another model",
                    remedy=f"Give it a name of its own: `models.NAME.served_as: {name}`.",
                )
            found[name] = label
    return found


def _without_api_path(url: str | None) -> str | None:
    """The server's URL, of one with the path that clients of OpenAI's API are given."""
    return url and (_API_PATH.sub("", url) or url)


def _taken_off(typed: str | None, url: str | None) -> str:
    """Say what of the URL that was typed is not in `url`; empty where nothing is missing."""
    if not (typed and url) or typed == url:
        return ""
    return f"--base-url {url}: {typed.removeprefix(url)} was taken off, which the suite adds itself"


def _current_context(policy: Policy) -> str | None:
    """Name the kubeconfig's context, so that the whole run and its gates keep to it."""
    if policy.platform != "kubernetes":
        return None
    from vllm_rollout.platform.kubernetes.kubeconfig import current_context

    return current_context()


def _confidence(text: str | None) -> float | None:
    if text is None:
        return None
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Confidence).validate_python(text)
    except ValidationError as error:
        raise UsageError(
            f"--confidence {text!r} is no confidence", remedy="For example 99.5%."
        ) from error


def _workers(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_WORKERS:
        raise UsageError(
            f"--workers {text!r} is not a number of load workers",
            remedy=f"1 to {_MOST_WORKERS}; one for each CPU core that is free.",
        )
    return int(text)


def _switched_on(name: str) -> bool:
    text = option_or_environment(name, None) or "off"
    if text.lower() not in _SWITCH:
        raise UsageError(f"{variable_of(name)} is {text!r}", remedy="Write on or off.")
    return _SWITCH[text.lower()]


def make_platform(policy: Policy, *, kube_context: str | None = None) -> ReleaseWriter:
    """The platform the policy names. Reaches nothing yet: the first question to it does."""
    if policy.platform == "local":
        from vllm_rollout.platform.local import LocalPlatform

        return LocalPlatform(
            Path(policy.local.state),
            startup_timeout=policy.local.startup_timeout,
            max_restarts=policy.local.max_restarts,
            drain=policy.drain,
            gpus=policy.local.gpus,
        )
    places = {
        name: (
            policy.deployment("any", name).namespace,
            _context_of(policy, name, kube_context),
        )
        for name in policy.order
    }
    platforms = {place: _kubernetes(policy, *place) for place in dict.fromkeys(places.values())}
    if len(platforms) == 1:
        return next(iter(platforms.values()))
    from vllm_rollout.platform.clusters import Clusters, as_writer

    of_each = {name: platforms[place] for name, place in places.items()}
    return as_writer(Clusters(of_each, home=policy.order[-1]))


def _context_of(policy: Policy, environment: str, kube_context: str | None) -> str | None:
    """The environment's own context, else that of the command."""
    own = policy.environments[environment].kubernetes
    return (own and own.context) or kube_context


def _kubernetes(policy: Policy, namespace: str, context: str | None) -> ReleaseWriter:
    from vllm_rollout.platform.kubernetes import KubernetesPlatform

    return KubernetesPlatform(
        namespace=namespace,
        context=context,
        chart=Path(policy.kubernetes.chart or CHARTS / "vllm-deployment"),
        overlays=Path(policy.kubernetes.overlays) if policy.kubernetes.overlays else None,
        helm=policy.kubernetes.helm,
        service_url=policy.service_url,
        reach=policy.kubernetes.reach,
        surge=policy.kubernetes.surge,
        unavailable=policy.kubernetes.unavailable,
        start_up=start_up_by(policy),
        http_route=policy.kubernetes.http_route,
        environment_owns=policy.kubernetes.environment_owns,
        order=policy.order,
        overwrite=policy.kubernetes.field_conflicts == "overwrite",
    )


def make_load_pods(
    policy: Policy, deployment: Deployment, *, kube_context: str | None, has_key: bool
) -> LoadPods:
    """The pods that make the deployment's load. Reaches the cluster's kubeconfig, and no more."""
    from vllm_rollout.platform.kubernetes.api import connect
    from vllm_rollout.platform.kubernetes.helm import Helm
    from vllm_rollout.platform.kubernetes.load_generator import KubernetesLoadPods
    from vllm_rollout.platform.kubernetes.load_values import LoadSettings

    own = policy.kubernetes.load_generator
    return KubernetesLoadPods(
        connect(kube_context),
        Helm(policy.kubernetes.helm),
        deployment,
        LoadSettings(
            namespace=own.namespace or deployment.namespace,
            image=own.image or "",
            values=Path(own.values) if own.values else None,
            start_seconds=own.start_timeout.total_seconds(),
            has_key=has_key,
            ca_file=policy.ca_file or "",
        ),
    )


def start_up_by(policy: Policy) -> "StartUpOf":
    """Return how long models may load, by the policy's table."""
    from vllm_rollout.platform.kubernetes import StartUp

    def start_up(model: str, stated: float | None) -> StartUp:
        rules = policy.for_model(model)
        parameters = rules.parameters(model, stated=stated)
        return StartUp(
            parameters=parameters,
            period_seconds=rules.startup_probe.period_seconds,
            failure_threshold=rules.startup_failure_threshold(parameters),
        )

    return start_up
