"""Chart folder: its facts, its digest, and the order of its values files."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_rollout.model.deployment import Build, Deployment, canonical_digest
from vllm_rollout.model.errors import UsageError
from vllm_rollout.yaml_file import read_mapping

_RAMP = "vllm-rollout/ramp"
_OF_THE_BUILD = ("image", "model", "rollout", "canary")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Facts about a chart.

    `ramps` is whether it understands `canary.replicaCount` and `canary.stablePodTemplate`.
    """

    path: Path
    digest: str
    defaults: Mapping[str, Any]
    ramps: bool


def load_chart(path: Path) -> Chart:
    """Read the chart folder at `path`.

    Raises:
        UsageError: it is no chart, or a file of it cannot be read.
    """
    about = read_mapping(path / "Chart.yaml", remedy="Name a folder that holds a Helm chart.")
    values = path / "values.yaml"
    annotations = about.get("annotations") or {}
    return Chart(
        path=path,
        digest=chart_digest(path),
        defaults=read_mapping(values) if values.is_file() else {},
        ramps=annotations.get(_RAMP) == "canary",
    )


def chart_digest(path: Path) -> str:
    """Digest of every file's path and content.

    Left out are `values-<environment>.yaml`, which are no part of a build, and hidden files,
    which editors and desktops leave behind.
    """
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and not (file.parent == path and file.match("values-*.yaml"))
    )
    return canonical_digest(
        {
            file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
        }
    )


def make_build(chart_path: Path, deployment: Deployment, values: dict[str, Any]) -> Build:
    """The build that the chart folder and `values` make, as far as is known without rendering.

    Raises:
        UsageError: the chart cannot be read, or the values serve another model.
    """
    chart = load_chart(chart_path)
    effective = merged(chart.defaults, values)
    model = _section(effective, "model")
    named = model.get("name", deployment.model)
    if named != deployment.model:
        raise UsageError(
            f"the values serve the model {named!r}, and the deployment is {deployment}",
            remedy=f"Set model.name to {deployment.model} in the values.",
        )
    return Build(
        chart_digest=chart.digest,
        values_digest=canonical_digest(values),
        image_digest=_section(effective, "image").get("digest") or None,
        model_revision=model.get("revision") or None,
    )


def _section(values: dict[str, Any], key: str) -> dict[str, Any]:
    section = values.get(key)
    return section if isinstance(section, dict) else {}


def overlay(folder: Path, environment: str) -> Path:
    """The environment's values file in `folder`.

    Raises:
        UsageError: it is missing, is no mapping, or sets what belongs to the build: then what is
            deployed would not be what was gated.
    """
    path = folder / f"values-{environment}.yaml"
    values = read_mapping(
        path, remedy=f"Write {path.name}; it may be empty where the environment has nothing own."
    )
    taken = [key for key in _OF_THE_BUILD if key in values]
    if taken:
        raise UsageError(
            f"{path} sets {', '.join(taken)}, which belongs to the build and not to an environment",
            remedy="Move it to the values of the deployment, so that it passes the gates.",
        )
    return path


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, as Helm does it: mappings merge, null removes, all else replaces."""
    result = dict(below)
    for key, value in above.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            under = result.get(key)
            result[key] = merged(under if isinstance(under, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def mentioned(chart: Path, words: Iterable[str]) -> list[str]:
    """Return those of `words` that a template of the chart, or of a chart in it, has."""
    files = [f for f in chart.rglob("*") if "templates" in f.relative_to(chart).parts]
    text = b"".join(file.read_bytes() for file in files if file.is_file())
    return [word for word in words if word.encode() in text]


def copied(chart: Path, folder: Path) -> Path:
    """Copy the chart into `folder`, so that what is looked at is what Helm reads; gives its path.

    Raises:
        UsageError: there is no such folder.
    """
    try:
        return Path(shutil.copytree(chart, folder / "chart"))
    except (OSError, shutil.Error) as error:
        raise UsageError(
            f"the chart {chart} cannot be read: {error}",
            remedy="Name a folder that holds a Helm chart.",
        ) from error


def admit(chart: Path, keys: Iterable[str]) -> None:
    """Let the schema of this copy of a chart take `keys`, where it lists all that values may hold.

    They are the suite's own: a team's schema need not know them.

    Raises:
        UsageError: the schema is not JSON.
    """
    file = chart / "values.schema.json"
    if not file.is_file():
        return
    try:
        schema = json.loads(file.read_bytes())
    except ValueError as error:
        raise UsageError(f"{file.name} of the chart is not JSON: {error}") from error
    if isinstance(schema, dict) and schema.get("additionalProperties", True) is not True:
        schema["properties"] = {key: {} for key in keys} | schema.get("properties", {})
        file.write_text(json.dumps(schema))
