"""Image names: read as container runtimes read them, and nothing else gets into a URL."""

import pytest

from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.image_name import parse_image

DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("text", "whole", "reference"),
    [
        ("vllm/vllm-openai:v0.32.0", "docker.io/vllm/vllm-openai:v0.32.0", "v0.32.0"),
        ("nginx", "docker.io/library/nginx", "latest"),
        ("index.docker.io/vllm/vllm-openai", "docker.io/vllm/vllm-openai", "latest"),
        ("localhost/vllm", "localhost/vllm", "latest"),
        ("127.0.0.1:5000/team/vllm:1", "127.0.0.1:5000/team/vllm:1", "1"),
        (f"ghcr.io/a/b:1@{DIGEST}", f"ghcr.io/a/b:1@{DIGEST}", DIGEST),
    ],
)
def test_names_are_read_as_runtimes_read_them(text: str, whole: str, reference: str) -> None:
    image = parse_image(text)
    assert (str(image), image.reference) == (whole, reference)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "UPPER/case",
        "ghcr.io/../secrets",
        "ghcr.io/a/b:",
        "ghcr.io/a/b@sha256:short",
        "ghcr.io/a/b?x=1",
        "user@evil.example/a",
        "ghcr.io/a b",
        "ghcr.io//a",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not the name of an image"):
        parse_image(text)
