"""Take secrets out of text that others will read: command output, logs."""

import os
import re
from collections.abc import Iterable, Mapping

HIDDEN = "[redacted]"
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_SHORTEST = 6
_SHAPES = (
    re.compile(r"(?i)(\bbearer\s+)[^\s'\",]+"),
    re.compile(r"()\b(?:hf_|sk-)[A-Za-z0-9_-]{12,}"),
    re.compile(
        r"(?i)((?:api[-_]?key|token|password|secret)['\"]?(?:\s*[=:]\s*|\s+(?=['\"]))\[?['\"]?)"
        r"[^\s'\",\]\[]+"
    ),
)


def secrets_in(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Values of the environment variables that are named like secrets; very short ones left out."""
    return [
        value
        for name, value in environment.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST
    ]


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without the given values and without what has the shape of a key or token."""
    # The longest first: one secret may be part of another.
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for shape in _SHAPES:
        text = shape.sub(rf"\g<1>{HIDDEN}", text)
    return text
