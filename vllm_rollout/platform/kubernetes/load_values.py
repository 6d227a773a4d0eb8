"""Values of the chart load-generator for a load task."""

import hashlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_pods import LoadTask
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi
from vllm_rollout.yaml_file import read_mapping

_LONGEST_NAME = 46
"""Its pods' names, with `-worker-` and five letters, and Helm's own limit of 53, are kept."""
_LARGEST_PLAN = 1_000_000
"""A ConfigMap holds 1 MiB."""
_OVERTIME_SECONDS = 180
"""For fetching the logs, before Kubernetes ends what has not ended by itself."""
_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """Settings of load pods; `values` is a file for the chart, or None."""

    namespace: str
    image: str
    values: Path | None
    start_seconds: float
    has_key: bool
    """Whether there is a bearer key here, which the pods will need too."""
    ca_file: str = ""
    """Certificates that the pods trust beside the well-known ones."""


def generator_name(release: str) -> str:
    """Return the name of a release's generator."""
    name = f"{release}-load"
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(release.encode()).hexdigest()[:6]
    return f"{release[: _LONGEST_NAME - 12].rstrip('-')}-{digest}-load"


def generator_values(api: KubernetesApi, settings: LoadSettings, task: LoadTask) -> dict[str, Any]:
    """Return the values that go over the chart's and over `settings.values`.

    Raises:
        UsageError: the plan is too large, a key or the image is missing, or the address means
            nothing in a pod.
        NotFoundError, UnreachableError: the Service that `base_url` names cannot be read.
    """
    own = read_mapping(settings.values) if settings.values else {}
    trusted = _certificates(settings.ca_file)
    if (size := len(task.plan.encode()) + len(trusted.encode())) > _LARGEST_PLAN:
        takes, fewer = (
            ("the load plan and `ca_file` take", "a shorter trace, only your own authorities")
            if trusted
            else ("the load plan takes", "a shorter trace")
        )
        raise UsageError(
            f"{takes} {size:,} bytes, and a ConfigMap has room for {_LARGEST_PLAN:,}",
            remedy=f"Take fewer prompts or {fewer}, or make the load here.",
        )
    if settings.has_key and not (own.get("apiKeySecret") or {}).get("name"):
        raise UsageError(
            "the model server asks for a bearer key, and the load generator's pods have none",
            remedy="Name its Secret: `apiKeySecret: {name: …, key: …}` in the file of "
            "`kubernetes.load_generator.values`.",
        )
    values: dict[str, Any] = {
        "plan": task.plan,
        "workers": task.workers,
        "startSeconds": round(settings.start_seconds),
        "activeSeconds": round(settings.start_seconds + task.longest_seconds + _OVERTIME_SECONDS),
    }
    if trusted:
        values["caCertificates"] = trusted
    if settings.image:
        values["image"] = settings.image
    elif not own.get("image"):
        raise UsageError(
            "load in the cluster needs an image with vllm-rollout in it",
            remedy="Name it in the policy, by digest: `kubernetes: {load_generator: {image: "
            "REPOSITORY@sha256:…}}`; charts/load-generator/Dockerfile builds it.",
        )
    if "target" not in own:
        values["target"] = _target(api, task.base_url)
    return values


def _certificates(file: str) -> str:
    """The text of the policy's `ca_file`; empty without one."""
    try:
        return Path(file).read_text(encoding="utf-8") if file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"ca_file {file} cannot be given to the load generator's pods: {error}",
            remedy="Name a file with certificates in PEM, or set `ca_file: off`.",
        ) from error


def _target(api: KubernetesApi, base_url: str) -> dict[str, Any]:
    """Return the egress target: pods of the named Service, or any address at the port."""
    url = urlsplit(base_url)
    host = url.hostname or ""
    if _is_loopback(host):
        raise UsageError(
            f"{base_url} is this machine's own, and in a pod it would mean the pod",
            remedy="Leave --base-url out, or name the server as the cluster knows it.",
        )
    service, _, rest = host.partition(".")
    namespace, _, kind = rest.partition(".")
    if kind.split(".")[0] == "svc":
        with api.doing("get", f"services {service} in namespace {namespace}"):
            found = api.core.read_namespaced_service(
                service, namespace, _request_timeout=TIMEOUT_SECONDS
            )
        if found.spec.selector:
            return {"namespace": namespace, "podLabels": dict(found.spec.selector)}
    return {"port": url.port or _DEFAULT_PORT[url.scheme]}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
