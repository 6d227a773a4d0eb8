"""Images in a registry and their digests, by the pull side of the OCI distribution protocol.

Specification: github.com/opencontainers/distribution-spec, "Pulling manifests"; the bearer tokens
are Docker's ("Token Authentication Specification").
"""

import base64
import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import msgspec

from vllm_rollout.http_client import HttpAnswer, HttpClient, HttpError
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.image_name import ImageName
from vllm_rollout.model.preflight_facts import switch_off
from vllm_rollout.model.text import shown

_TIMEOUT_SECONDS = 15.0
_MAX_BYTES = 4 * 1024 * 1024
_ACCEPT = ", ".join(
    f"application/vnd.{kind}"
    for kind in (
        "oci.image.index.v1+json",
        "oci.image.manifest.v1+json",
        "docker.distribution.manifest.list.v2+json",
        "docker.distribution.manifest.v2+json",
    )
)
_HUB_API = {"docker.io": "registry-1.docker.io"}
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)

Credentials = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImage:
    """Answer of a registry: the manifest's digest, or why there is none."""

    digest: str = ""
    problem: str = ""


def find_image(image: ImageName, *, credentials: Sequence[Credentials] = ()) -> FoundImage:
    """Ask the image's registry for its manifest: without credentials first, then with each.

    A registry on this machine's loopback is asked by plain HTTP, as container runtimes do.

    Raises:
        UnreachableError: the registry did not answer, or not as registries do.
    """
    found = FoundImage()
    for pair in (None, *credentials):
        found = _ask(image, pair)
        if not found.problem:
            break
    return found


def _ask(image: ImageName, credentials: Credentials | None) -> FoundImage:
    host = _HUB_API.get(image.registry, image.registry)
    scheme = "http" if _is_loopback(host) else "https"
    url = f"{scheme}://{host}/v2/{image.repository}/manifests/{image.reference}"
    with HttpClient(max_bytes=_MAX_BYTES, proxy=True, redirects=True) as client:
        try:
            answer = _get(client, url, {"Accept": _ACCEPT})
            if answer.status == HTTPStatus.UNAUTHORIZED:
                authorization = _authorization(client, image, answer, credentials)
                answer = _get(client, url, {"Accept": _ACCEPT, **authorization})
        except HttpError as error:
            raise _unreachable(host, error.reason) from error
    return _read(image, host, answer)


def _get(client: HttpClient, url: str, headers: dict[str, str], **query: object) -> HttpAnswer:
    return client.get(url, timeout_seconds=_TIMEOUT_SECONDS, headers=headers, **query)


def _read(image: ImageName, host: str, answer: HttpAnswer) -> FoundImage:
    status = answer.status
    if status == HTTPStatus.NOT_FOUND:
        return FoundImage(problem=f"{host} has no {image.repository} at {image.reference}")
    if status in _REFUSED:
        return FoundImage(problem=f"{host} does not give {image.repository}: it answers {status}")
    if status != HTTPStatus.OK:
        raise _unreachable(host, f"it answers {status}")
    body = answer.body
    if b'"schemaVersion"' not in body:
        raise _unreachable(host, "what it answers is no manifest")
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    header = shown(answer.header("Docker-Content-Digest") or digest)
    for expected in (image.digest, header):
        if expected.startswith("sha256:") and expected != digest:
            return FoundImage(problem=f"{host} gives {digest} for {expected}")
    return FoundImage(digest=digest)


def _authorization(
    client: HttpClient,
    image: ImageName,
    refusal: HttpAnswer,
    credentials: Credentials | None,
) -> dict[str, str]:
    """The header that answers the registry's challenge; empty where there is none to give."""
    challenge = refusal.header("WWW-Authenticate")
    scheme, _, rest = challenge.partition(" ")
    basic = _basic(credentials) if credentials else {}
    if scheme.lower() == "basic":
        return basic
    if scheme.lower() != "bearer":
        return {}
    fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    try:
        realm = urlsplit(fields.get("realm", ""))
    except ValueError as error:
        raise _unreachable(image.registry, "its token service has no address") from error
    if realm.scheme != "https" and not _is_loopback(realm.netloc):
        raise _unreachable(
            image.registry, f"its token service {shown(realm.geturl())!r} is not https"
        )
    asked = {"scope": f"repository:{image.repository}:pull"}
    if "service" in fields:
        asked["service"] = fields["service"]
    answer = _get(client, realm.geturl(), basic, params=asked)
    if answer.status in _REFUSED:
        return {}
    try:
        given = answer.json(_Token)
    except HttpError as error:
        raise _unreachable(shown(realm.netloc), "its token service gives no token") from error
    token = given.token or given.access_token
    if answer.status != HTTPStatus.OK or not token:
        raise _unreachable(shown(realm.netloc), "its token service gives no token")
    return {"Authorization": f"Bearer {token}"}


class _Token(msgspec.Struct):
    """Answer of a token service, in either of the protocol's two forms."""

    token: str | None = None
    access_token: str | None = None


def _basic(credentials: Credentials) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(':'.join(credentials).encode()).decode()}"}


def _is_loopback(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _unreachable(host: str, reason: str) -> UnreachableError:
    return UnreachableError(
        f"the image registry {host} cannot be asked: {reason}",
        address=host,
        remedy="Check the network from here to the registry; or leave the check to the cluster "
        f"with {switch_off('image')} in the policy.",
    )
