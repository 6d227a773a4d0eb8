"""Objects that pods need and a chart does not make: claims, Secrets, ConfigMaps, credentials."""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from vllm_rollout.model.image_name import parse_image, registry_host
from vllm_rollout.model.preflight_facts import Reference
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi, NotFoundError
from vllm_rollout.platform.kubernetes.templates import Json

_DOCKER_CONFIG = ".dockerconfigjson"


def needed_by(
    api: KubernetesApi,
    namespace: str,
    pods: Sequence[tuple[Json, int]],
    *,
    made: Mapping[tuple[str, str], Json],
) -> list[Reference]:
    """Each object that the pods name, once; those in `made`, by kind and name, are the chart's own.

    `pods` are the specs, each with how many such pods there may be at the same moment.

    Raises: as `KubernetesApi.doing`.
    """
    claims, secrets, maps = dict[str, int](), dict[str, set[str]](), dict[str, set[str]]()
    for spec, number in pods:
        for name in {
            str(volume["persistentVolumeClaim"]["claimName"])
            for volume in spec.get("volumes") or ()
            if volume.get("persistentVolumeClaim")
        }:
            claims[name] = claims.get(name, 0) + number
        for volume in spec.get("volumes") or ():
            _note(secrets, volume.get("secret"), "secretName")
            _note(maps, volume.get("configMap"), "name")
        for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
            for variable in container.get("env") or ():
                source = variable.get("valueFrom") or {}
                _note(secrets, source.get("secretKeyRef"), "name")
                _note(maps, source.get("configMapKeyRef"), "name")
            for source in container.get("envFrom") or ():
                _note(secrets, source.get("secretRef"), "name")
                _note(maps, source.get("configMapRef"), "name")
        for secret in spec.get("imagePullSecrets") or ():
            secrets.setdefault(secret["name"], set()).add(_DOCKER_CONFIG)
    read_secret, read_map = api.core.read_namespaced_secret, api.core.read_namespaced_config_map
    found = [
        _shared(name, claims[name], made["PersistentVolumeClaim", name].get("spec") or {})
        if ("PersistentVolumeClaim", name) in made
        else _claim(api, namespace, name, claims[name])
        for name in sorted(claims)
    ]
    return found + [
        Reference(kind=kind, name=name, problem=problem(name))
        for kind, names, problem in (
            ("Secret", secrets, _keyed(api, namespace, "secrets", read_secret, secrets)),
            ("ConfigMap", maps, _keyed(api, namespace, "configmaps", read_map, maps)),
        )
        for name in sorted(names)
        if (kind, name) not in made
    ]


def _note(found: dict[str, set[str]], source: Json | None, name_key: str) -> None:
    """Remember an object that is named, and the keys of it that are; optional ones need not be."""
    if not source or source.get("optional"):
        return
    keys = {item["key"] for item in source.get("items") or ()}
    if "key" in source:
        keys.add(source["key"])
    found.setdefault(str(source[name_key]), set()).update(keys)


def _keyed(
    api: KubernetesApi,
    namespace: str,
    resource: str,
    read: Callable[..., Any],
    wanted: Mapping[str, AbstractSet[str]],
) -> Callable[[str], str]:
    def problem(name: str) -> str:
        try:
            with api.doing("get", f"{resource} {name} in namespace {namespace}"):
                found = read(name, namespace, _request_timeout=TIMEOUT_SECONDS)
        except NotFoundError:
            return f"there is none in namespace {namespace}"
        lacking = sorted(wanted[name] - set(found.data or ()))
        return f"it has no key {', '.join(lacking)}" if lacking else ""

    return problem


def _claim(api: KubernetesApi, namespace: str, name: str, pods: int) -> Reference:
    reference = Reference(kind="PersistentVolumeClaim", name=name)
    try:
        with api.doing("get", f"persistentvolumeclaims {name} in namespace {namespace}"):
            claim = api.core.read_namespaced_persistent_volume_claim(
                name, namespace, _request_timeout=TIMEOUT_SECONDS
            )
    except NotFoundError:
        return replace(reference, problem=f"there is none in namespace {namespace}")
    phase = claim.status.phase or "Unknown"
    if phase == "Bound" or (phase == "Pending" and _binds_late(api, claim)):
        return _shared(name, pods, {"accessModes": claim.spec.access_modes})
    return replace(reference, problem=f"it is {phase}, not Bound")


def _shared(name: str, pods: int, spec: Json) -> Reference:
    """A claim that is there, with what is against so many pods that mount it."""
    modes = spec.get("accessModes") or ()
    found = Reference(kind="PersistentVolumeClaim", name=name)
    if pods < 2 or {"ReadWriteMany", "ReadOnlyMany"} & set(modes):
        return found
    many = f"and up to {pods} pods mount it at once, surge included"
    if "ReadWriteOncePod" in modes:
        return replace(found, problem=f"it is ReadWriteOncePod, {many}: one of them starts")
    if "ReadWriteOnce" in modes:
        return replace(found, doubt=f"it is ReadWriteOnce, {many}: they start on one node alone")
    return found


def _binds_late(api: KubernetesApi, claim: Any) -> bool:
    """Return True if the claim's storage class waits for the first pod before it binds."""
    name = claim.spec.storage_class_name
    if not name:
        return False
    try:
        with api.doing("get", f"storageclasses {name}"):
            found = api.storage.read_storage_class(name, _request_timeout=TIMEOUT_SECONDS)
    except NotFoundError:
        return False
    return bool(found.volume_binding_mode == "WaitForFirstConsumer")


def secret_value(api: KubernetesApi, namespace: str, name: str, key: str) -> str:
    """One value of a Secret; empty where the Secret or the key is missing or is no text.

    Raises: as `KubernetesApi.doing`.
    """
    try:
        with api.doing("get", f"secrets {name} in namespace {namespace}"):
            found = api.core.read_namespaced_secret(
                name, namespace, _request_timeout=TIMEOUT_SECONDS
            )
        return base64.b64decode((found.data or {}).get(key, "")).decode()
    except (NotFoundError, binascii.Error, UnicodeDecodeError):
        return ""


def pull_credentials(
    api: KubernetesApi, namespace: str, secrets: Iterable[str], image: str
) -> tuple[tuple[str, str], ...]:
    """The (user, password) pairs of pull Secrets that are for the image's registry.

    Raises: as `KubernetesApi.doing`; UsageError where `image` is no image's name.
    """
    found = []
    registry = parse_image(image).registry
    for name in secrets:
        text = secret_value(api, namespace, name, _DOCKER_CONFIG)
        try:
            entries = json.loads(text or "{}").get("auths") or {}
            for server, entry in entries.items():
                if registry_host(server) == registry and (pair := _pair(entry)):
                    found.append(pair)
        except (ValueError, AttributeError):
            continue  # not a pull Secret's content: the kubelet will not use it either
    return tuple(found)


def _pair(entry: Json) -> tuple[str, str] | None:
    if entry.get("username") and entry.get("password"):
        return str(entry["username"]), str(entry["password"])
    user, colon, password = base64.b64decode(entry.get("auth", "")).decode().partition(":")
    return (user, password) if colon else None
