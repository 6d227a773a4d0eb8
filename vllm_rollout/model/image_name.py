"""The parts of a container image's name, as container runtimes read it."""

import re
from dataclasses import dataclass

from vllm_rollout.model.errors import UsageError

_DOCKER_HUB = "docker.io"
_DOCKER_HUB_NAMES = (_DOCKER_HUB, "index.docker.io", "registry-1.docker.io")
_HOST = re.compile(r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+|/)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def registry_host(name: str) -> str:
    """A registry's host and port, whatever form it is written in; Docker Hub's names are one."""
    host = re.sub(r"^https?://", "", name).split("/")[0]
    return _DOCKER_HUB if host in _DOCKER_HUB_NAMES else host


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageName:
    """`registry/repository:tag@digest`; tag and digest are empty where they are not given."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def reference(self) -> str:
        """Reference to ask a registry for: the digest, else the tag, else `latest`."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


def parse_image(text: str) -> ImageName:
    """The image that `text` names; without a host it is one of Docker Hub's.

    Raises:
        UsageError: it is no image name. It reaches a URL, so nothing else is let through.
    """
    rest, _, digest = text.partition("@")
    first, slash, path = rest.partition("/")
    if not (slash and ("." in first or ":" in first or first == "localhost")):
        first, path = _DOCKER_HUB, rest
    repository, _, tag = path.partition(":")
    host = registry_host(first)
    if host == _DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    good = (
        _HOST.fullmatch(host)
        and _REPOSITORY.fullmatch(repository)
        and (not tag or _TAG.fullmatch(tag))
        and (not digest or _DIGEST.fullmatch(digest))
    )
    if not good or text.endswith((":", "@")):
        raise UsageError(
            f"{text!r} is not the name of an image",
            remedy="Write registry/repository:tag or registry/repository@sha256:<64 hex digits>.",
        )
    return ImageName(registry=host, repository=repository, tag=tag, digest=digest)
