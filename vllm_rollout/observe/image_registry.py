"""Images in a registry and their digests, by the pull side of the OCI distribution protocol.

Specification: github.com/opencontainers/distribution-spec, "Pulling manifests"; the bearer tokens
are Docker's ("Token Authentication Specification").
"""

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.image_name import ImageName

_TIMEOUT_SECONDS = 15.0
_LONGEST_MANIFEST = 4 * 1024 * 1024
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
    with httpx.Client(timeout=_TIMEOUT_SECONDS, follow_redirects=True) as client:
        try:
            answer = client.get(url, headers={"Accept": _ACCEPT})
            if answer.status_code == HTTPStatus.UNAUTHORIZED:
                authorization = _authorization(client, image, answer, credentials)
                answer = client.get(url, headers={"Accept": _ACCEPT, **authorization})
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unreachable(host, f"{type(error).__name__}: {error}") from error
    return _read(image, host, answer)


def _read(image: ImageName, host: str, answer: httpx.Response) -> FoundImage:
    status = answer.status_code
    if status == HTTPStatus.NOT_FOUND:
        return FoundImage(problem=f"{host} has no {image.repository} at {image.reference}")
    if status in _REFUSED:
        return FoundImage(problem=f"{host} does not give {image.repository}: it answers {status}")
    if status != HTTPStatus.OK:
        raise _unreachable(host, f"it answers {status}")
    body = answer.content
    if len(body) > _LONGEST_MANIFEST or b'"schemaVersion"' not in body:
        raise _unreachable(host, "what it answers is no manifest")
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    header = answer.headers.get("Docker-Content-Digest", digest)
    for expected in (image.digest, header):
        if expected.startswith("sha256:") and expected != digest:
            return FoundImage(problem=f"{host} gives {digest} for {expected}")
    return FoundImage(digest=digest)


def _authorization(
    client: httpx.Client,
    image: ImageName,
    refusal: httpx.Response,
    credentials: Credentials | None,
) -> dict[str, str]:
    """The header that answers the registry's challenge; empty where there is none to give."""
    challenge = refusal.headers.get("WWW-Authenticate", "")
    scheme, _, rest = challenge.partition(" ")
    if scheme.lower() == "basic" and credentials:
        # httpx writes the header; only its value is wanted here.
        request = next(httpx.BasicAuth(*credentials).auth_flow(refusal.request))
        return {"Authorization": request.headers["Authorization"]}
    if scheme.lower() != "bearer":
        return {}
    fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    realm = urlsplit(fields.get("realm", ""))
    if realm.scheme != "https" and not _is_loopback(realm.netloc):
        raise _unreachable(image.registry, f"its token service {realm.geturl()!r} is not https")
    asked = {"scope": f"repository:{image.repository}:pull"}
    if "service" in fields:
        asked["service"] = fields["service"]
    answer = client.get(
        realm.geturl(), params=asked, auth=httpx.BasicAuth(*credentials) if credentials else None
    )
    if answer.status_code in _REFUSED:
        return {}
    try:
        given = answer.raise_for_status().json()
        token = given.get("token") or given["access_token"]
    except (httpx.HTTPStatusError, ValueError, KeyError, AttributeError) as error:
        raise _unreachable(realm.netloc, "its token service gives no token") from error
    return {"Authorization": f"Bearer {token}"}


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
        "with `preflight: {image: off}` in the policy.",
    )
