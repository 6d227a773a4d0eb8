"""Where gates, load tests and charts are: beside the package, or inside it in a wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _find(name: str) -> Path:
    bundled = _PACKAGE / "_bundled" / name
    return bundled if bundled.is_dir() else _PACKAGE.parent / name


GATES = _find("gates").resolve()
"""Resolved, as paths that are compared with it are."""
LOADTESTS = _find("loadtests")
CHARTS = _find("charts")
DEFAULT_POLICY = _PACKAGE / "policy" / "default.yaml"
POLICY_SCHEMA = _PACKAGE / "policy" / "schema.json"
