"""The Kubernetes API: one connection, and its failures in the suite's words."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from http import HTTPStatus
from typing import Any

from vllm_rollout.model.errors import (
    AccessError,
    DeployError,
    RolloutError,
    UnreachableError,
    UsageError,
)
from vllm_rollout.model.preflight_facts import switch_off
from vllm_rollout.model.text import own_secret, shown
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.platform.kubernetes.command import webhook_away, webhook_remedy
from vllm_rollout.platform.kubernetes.kubeconfig import Kubeconfig, resolve_kubeconfig

TIMEOUT_SECONDS = (5.0, 30.0)
"""For connecting, and for each answer."""

_LONGEST_MESSAGE = 1000
_BEYOND_NAMESPACES = ("nodes", "pods in all namespaces", "storageclasses")
"""What no Role allows, only the ClusterRole of the chart rollout-roles."""


class NotFoundError(DeployError):
    """The API server has no such object."""


class ExpiredError(DeployError):
    """The API server dropped a listing between two pages."""


class KubernetesApi:
    """The typed-by-hand part of the untyped client: its API groups and the server's address.

    The client has a module for each group, and each takes long to import: made when asked for.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.address: str = connection.configuration.host

    def _group(self, name: str) -> Any:
        from kubernetes import client

        return getattr(client, name)(self._connection)

    @cached_property
    def core(self) -> Any:
        return self._group("CoreV1Api")

    @cached_property
    def coordination(self) -> Any:
        return self._group("CoordinationV1Api")

    @cached_property
    def storage(self) -> Any:
        return self._group("StorageV1Api")

    @cached_property
    def apps(self) -> Any:
        return self._group("AppsV1Api")

    @cached_property
    def batch(self) -> Any:
        return self._group("BatchV1Api")

    @cached_property
    def networking(self) -> Any:
        return self._group("NetworkingV1Api")

    @cached_property
    def custom(self) -> Any:
        return self._group("CustomObjectsApi")

    def capabilities(self) -> tuple[str, list[str]]:
        """The server's version, and `group/version` and `group/version/Kind` of each of its APIs.

        Raises: as `doing`.
        """
        with self.doing("get", "the API server's discovery"):
            version = self._group("VersionApi").get_code(_request_timeout=TIMEOUT_SECONDS)
        found: list[str] = []
        for api, kind, _ in self._discovered():
            found += [f"{api}/{kind}"] if kind else [api]
        return version.git_version, found

    @cached_property
    def paths(self) -> dict[tuple[str, str], str]:
        """The path of the objects of an `apiVersion` and kind, with `{}` for a namespace.

        Raises: as `doing`.
        """
        found = {}
        for api, kind, resource in self._discovered():
            if kind:
                within = "namespaces/{}/" if resource["scope"] == "Namespaced" else ""
                root = "apis" if "/" in api else "api"
                found[api, kind] = f"/{root}/{api}/{within}{resource['resource']}"
        return found

    def _discovered(self) -> Iterator[tuple[str, str, Any]]:
        """Each `group/version`, without a kind, and each of its kinds with its description."""
        kinds = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        for path in ("/api", "/apis"):
            found = self.request("get", path, "GET", path, header_params={"Accept": kinds})
            yield from _apis(found)

    def ask(self, method: str, path: str, **request: Any) -> tuple[int, str]:
        """The status and text of the answer to what the client has no method for.

        A refusal is an answer too. To be called within `doing`.
        """
        client = self._connection
        made = client.param_serialize(method, path, auth_settings=["BearerToken"], **request)
        answer = client.call_api(*made, _request_timeout=TIMEOUT_SECONDS)
        return answer.status, answer.read().decode(errors="replace")

    def request(self, verb: str, resource: str, method: str, path: str, **more: Any) -> Any:
        """The JSON of the answer to what the client has no method for.

        Raises: as `doing`, of a refusal too.
        """
        with self.doing(verb, resource):
            status, text = self.ask(method, path, **more)
        if status >= HTTPStatus.BAD_REQUEST:
            raise self.refusal(status, text, verb, resource)
        return json.loads(text)

    @contextmanager
    def doing(self, verb: str, resource: str) -> Iterator[None]:
        """Turn the client's exceptions into the suite's, saying what was being done.

        Raises:
            UnreachableError: no answer.
            AccessError: no permission to `verb` the `resource`.
            ConflictError: someone else changed the object first.
            NotFoundError: there is no such object.
            ExpiredError: a listing took so long that its next page is gone.
            DeployError: the server refuses the request.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            raise self.refusal(
                error.status, str(error.body or error.reason), verb, resource
            ) from error
        except (HTTPError, OSError) as error:
            raise UnreachableError(
                f"cannot {verb} {resource}: {self.address} does not answer ({error})",
                address=self.address,
                remedy="Check the kube context (--kube-context, KUBECONFIG) and the network.",
            ) from error

    def refusal(self, status: int, body: str, verb: str, resource: str) -> RolloutError:
        """The error that an answer of this status is; see `doing` for which."""
        message = f"cannot {verb} {resource}: the API server answers {status}: {message_of(body)}"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return AccessError(
                message,
                address=self.address,
                remedy="The credentials have expired: log in again."
                if status == HTTPStatus.UNAUTHORIZED
                else _role_for(verb, resource, message),
            )
        if status == HTTPStatus.NOT_FOUND:
            return NotFoundError(message)
        if status == HTTPStatus.GONE:
            return ExpiredError(message, remedy="List again from the beginning.")
        if status == HTTPStatus.CONFLICT:
            return ConflictError(message, remedy="Read it again and decide again.")
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            webhook = webhook_away(message)
            remedy = (
                webhook_remedy(webhook) if webhook else "The API server is overloaded: try again."
            )
            return UnreachableError(message, address=self.address, remedy=remedy)
        return DeployError(message)


def _role_for(verb: str, resource: str, message: str) -> str:
    if "ValidatingAdmissionPolicy" in message:
        return "Use an account that the policy allows this, or correct what it names."
    asked = f"Ask for a Role that allows the verb {verb!r} on {resource!r}, as "
    if resource.startswith(_BEYOND_NAMESPACES):
        return (
            f"{asked}the chart rollout-roles has with `seesNodes: true`; or leave out the check "
            f"that takes it: {switch_off('gpus')} in the policy; for claims it is `volumes: off` "
            "there."
        )
    return f"{asked}those of this version's chart rollout-roles do."


def message_of(body: str) -> str:
    """The `message` of a Kubernetes Status object, or the body as it is."""
    try:
        return shown(str(json.loads(body)["message"]), _LONGEST_MESSAGE)
    except (ValueError, KeyError, TypeError, RecursionError):
        return shown(body, _LONGEST_MESSAGE)


def _apis(discovery: Any) -> Iterator[tuple[str, str, Any]]:
    for group in discovery.get("items", ()):
        name = group["metadata"].get("name")
        for version in group["versions"]:
            api = f"{name}/{version['version']}" if name else version["version"]
            yield api, "", None
            for resource in version.get("resources", ()):
                yield api, str(resource["responseKind"]["kind"]), resource


def connect(context: str | None) -> KubernetesApi:
    """Connect by `context`, or by the current one, or from within a pod. Sends nothing yet.

    Raises: as `resolve_kubeconfig`.
    """
    return connected(resolve_kubeconfig(context))


def connected(kubeconfig: Kubeconfig) -> KubernetesApi:
    """The API of this cluster, as this identity. Sends nothing yet.

    Raises:
        UsageError: its entries cannot be used.
    """
    from kubernetes import client, config

    from vllm_rollout.platform.kubernetes.retry import throttling_retry

    configuration = client.Configuration(retries=throttling_retry())
    try:
        if kubeconfig.context is None:  # this reads the token again when it expires
            config.load_incluster_config(  # type: ignore[no-untyped-call]
                client_configuration=configuration
            )
        else:
            config.load_kube_config_from_dict(  # type: ignore[no-untyped-call]
                kubeconfig.content, client_configuration=configuration, persist_config=False
            )
    except (config.ConfigException, OSError) as error:
        raise UsageError(
            f"{kubeconfig} cannot be used: {error}",
            remedy="kubectl config view --minify shows it.",
        ) from error
    for header in configuration.api_key.values():
        own_secret(header.rpartition(" ")[2])
    return KubernetesApi(client.ApiClient(configuration))
