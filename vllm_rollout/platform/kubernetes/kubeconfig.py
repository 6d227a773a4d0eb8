"""Cluster and identity that a kube context names: resolved once, for the API's client and Helm."""

import os
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import yaml

from vllm_rollout.model.errors import UnreachableError, UsageError
from vllm_rollout.yaml_file import read_mapping

_DEFAULT_FILE = "~/.kube/config"
_POD = "this-pod"
_POD_ADDRESS = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
_POD_IDENTITY = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_FILES = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
_TEXTS = ("server", "tls-server-name", "token", "username", "password", *_FILES)
_IMPERSONATION = ("as", "as-groups", "as-uid", "as-user-extra")

_PASSED_TO_HELM = frozenset(
    f"HELM_{name}"
    for name in (
        "BURST_LIMIT",
        "CACHE_HOME",
        "CONFIG_HOME",
        "CONTENT_CACHE",
        "DATA_HOME",
        "DRIVER_SQL_CONNECTION_STRING",
        "NO_PLUGINS",
        "PLUGINS",
        "QPS",
        "REGISTRY_CONFIG",
        "REPOSITORY_CACHE",
        "REPOSITORY_CONFIG",
    )
)
"""Helm's variables that say nothing of cluster, identity, namespace or revisions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubeconfig:
    """One cluster and one identity; `context` is None within a pod, by its service account.

    `cluster` and `user` are as in a kubeconfig, their files by absolute paths.
    """

    context: str | None
    cluster: Mapping[str, Any]
    user: Mapping[str, Any]

    def __str__(self) -> str:
        server = self.cluster["server"]
        where = f"kube context {self.context}" if self.context else "the cluster of this pod"
        return f"{where} ({server})"

    @property
    def content(self) -> dict[str, Any]:
        """A kubeconfig with nothing else in it."""
        name = self.context or _POD
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": dict(self.cluster)}],
            "users": [{"name": name, "user": dict(self.user)}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        }


_Document = tuple[Path, Mapping[str, Any]]


def resolve_kubeconfig(context: str | None = None, *, namespace: str = "") -> Kubeconfig:
    """Resolve `context`, or the current one, or this pod's service account.

    As kubectl reads the files of KUBECONFIG: the first that has a name, or a current context, has
    the say. What Helm's own variables say must be the same, and its namespace be `namespace`.

    Raises:
        UsageError: there is no such context, or HELM_* variables contradict it.
        UnreachableError: neither a context nor a pod's service account.
    """
    documents = _documents()
    name = context or _current(documents)
    found = _of_context(documents, name) if name else _of_pod()
    _refuse_contradictions(found, namespace)
    return found


def current_context() -> str | None:
    """The kubeconfig's current context; None where it has none, as within a pod."""
    return _current(_documents())


@contextmanager
def helm_environment(kubeconfig: Kubeconfig | None, *, driver: str) -> Iterator[dict[str, str]]:
    """The environment in which Helm works with exactly this cluster and identity, or with none."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_TO_HELM or not name.startswith("HELM_")
    }
    # Helm forgets all but 10 revisions by default, and with them the last good one.
    environment |= {"HELM_DRIVER": driver, "HELM_MAX_HISTORY": "0", "KUBECONFIG": os.devnull}
    if kubeconfig is None:
        yield environment
        return
    # Readable by this user alone.
    with NamedTemporaryFile("w", prefix="vllm-rollout-", suffix=".kubeconfig") as file:
        yaml.safe_dump(kubeconfig.content, file)
        file.flush()
        yield environment | {"KUBECONFIG": file.name}


def _documents() -> list[_Document]:
    named = os.environ.get("KUBECONFIG") or _DEFAULT_FILE
    paths = [Path(each).expanduser() for each in named.split(os.pathsep) if each]
    return [(path, read_mapping(path)) for path in paths if path.exists()]


def _current(documents: Sequence[_Document]) -> str | None:
    named = (document.get("current-context") for _, document in documents)
    return next((str(name) for name in named if name), None)


def _of_context(documents: Sequence[_Document], name: str) -> Kubeconfig:
    context = _entry(documents, "context", name)
    cluster = _entry(documents, "cluster", str(context.get("cluster", "")))
    user = _entry(documents, "user", str(context["user"])) if context.get("user") else {}
    if not cluster.get("server"):
        raise _unusable(name, "its cluster has no server")
    if acts_as := [key for key in _IMPERSONATION if user.get(key)]:
        raise UsageError(
            f"kube context {name!r}: its user acts as somebody else ({', '.join(acts_as)}), which "
            "the API's client cannot, so that it and Helm would act as two",
            remedy="Use a context whose user has the rights itself.",
        )
    if user.get("tokenFile"):  # as client-go has it
        user.pop("token", None)
    return Kubeconfig(context=name, cluster=cluster, user=user)


def _entry(documents: Sequence[_Document], kind: str, name: str) -> dict[str, Any]:
    """The named entry of the first file that has it."""
    for path, document in documents:
        try:
            entries = [each for each in document.get(f"{kind}s") or () if each["name"] == name]
            if entries:
                entry = entries[0].get(kind) or {}
                _check_texts(name, path, entry)
                return _with_absolute_paths(entry, path.absolute().parent)
        except (AttributeError, KeyError, TypeError) as error:
            raise _unusable(name, f"{path} is no kubeconfig") from error
    raise _unusable(name, f"the kubeconfig has no {kind} of this name")


def _check_texts(name: str, path: Path, entry: Mapping[str, Any]) -> None:
    """Refuse values that are no text, or no base64 where they have to be: kubectl does, too."""
    for key, value in entry.items():
        encoded = key.endswith("-data")
        if (key in _TEXTS or encoded) and not isinstance(value, str):
            raise _unusable(name, f"its {key} in {path} is no text: quote it")
        try:
            b64decode("".join(value.split()) if encoded else "", validate=True)
        except ValueError as error:
            raise _unusable(name, f"its {key} in {path} is no base64") from error


def _unusable(name: str, why: str) -> UsageError:
    return UsageError(
        f"kube context {name!r}: {why}", remedy="kubectl config get-contexts lists them."
    )


def _with_absolute_paths(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    files = {key: str(folder / entry[key]) for key in _FILES if entry.get(key)}
    changed = {**entry, **files}
    plugin = entry.get("exec") or {}
    if os.sep in plugin.get("command", ""):
        changed["exec"] = {**plugin, "command": str(folder / plugin["command"])}
    return changed


def _of_pod() -> Kubeconfig:
    host, port = (os.environ.get(name) for name in _POD_ADDRESS)
    token = _POD_IDENTITY / "token"
    if not host or not port or not token.is_file():
        raise UnreachableError(
            "no cluster: the kubeconfig has no current context, and this is no pod with a service "
            "account",
            address="kubeconfig",
            remedy="Set KUBECONFIG or --kube-context; or gate a server with --base-url URL; or "
            "keep releases on this machine with --platform local.",
        )
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Kubeconfig(
        context=None,
        cluster={"server": server, "certificate-authority": str(_POD_IDENTITY / "ca.crt")},
        user={"tokenFile": str(token)},
    )


def _refuse_contradictions(kubeconfig: Kubeconfig, namespace: str) -> None:
    """Return if Helm's own variables name no other cluster, identity or namespace.

    Raises:
        UsageError: they do. Somebody expects them to count, and for the client they cannot.
    """
    found = [
        name
        for name, agrees in _AGREES.items()
        if (value := os.environ.get(name, "")) and not agrees(kubeconfig, value)
    ]
    other = os.environ.get("HELM_NAMESPACE", "")
    works_with = [str(kubeconfig)] if found else []
    if namespace and other not in ("", namespace):
        found.append("HELM_NAMESPACE")
        works_with.append(f"namespace {namespace}")
    if found:
        told = (name if name == _TOKEN else f"{name}={os.environ[name]}" for name in found)
        raise UsageError(
            f"{', '.join(told)}: this run works with {' and '.join(works_with)}, and Helm would "
            "work with something else",
            remedy=f"unset {' '.join(found)}; or name the cluster for the whole suite with "
            "--kube-context or KUBECONFIG, the namespace with --namespace.",
        )


_TOKEN = "HELM_KUBETOKEN"  # noqa: S105 - a variable's name


def _content(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes().strip()
    except OSError:
        return None


def _same_token(kubeconfig: Kubeconfig, value: str) -> bool:
    user = kubeconfig.user
    kept = _content(user["tokenFile"]) if "tokenFile" in user else user.get("token", "").encode()
    return kept == value.encode()


def _same_authority(kubeconfig: Kubeconfig, value: str) -> bool:
    data = kubeconfig.cluster.get("certificate-authority-data")
    file = kubeconfig.cluster.get("certificate-authority", "")
    return _content(value) == (b64decode(data).strip() if data else _content(file)) is not None


def _nobody(_kubeconfig: Kubeconfig, _value: str) -> bool:
    return False


_AGREES: Mapping[str, Callable[[Kubeconfig, str], bool]] = {
    "HELM_KUBECONTEXT": lambda known, value: value == known.context,
    "HELM_KUBEAPISERVER": lambda known, value: (
        value.rstrip("/") == known.cluster["server"].rstrip("/")
    ),
    _TOKEN: _same_token,
    "HELM_KUBECAFILE": _same_authority,
    "HELM_KUBEASUSER": _nobody,
    "HELM_KUBEASGROUPS": _nobody,
    "HELM_KUBETLS_SERVER_NAME": lambda known, value: value == known.cluster.get("tls-server-name"),
    "HELM_KUBEINSECURE_SKIP_TLS_VERIFY": lambda known, value: (
        value.lower() not in ("1", "t", "true")
        or bool(known.cluster.get("insecure-skip-tls-verify"))
    ),
}
"""Helm's variables about cluster and identity: whether a value says what the kubeconfig says."""
