"""No leaf of a chart's values lets an environment serve something else under the same build.

Each leaf of the suite's chart, and of charts with the shapes that are found in the field, is set to
other values by an overlay. What the platform accepts has to leave alone what this module, by rules
of its own, takes for served.
"""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_rollout.model.deployment import Build, Deployment
from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.resources import CHARTS

SHAPES = Path(__file__).parent / "shapes"
CHART_FOLDERS = [CHARTS / "vllm-deployment", *sorted(SHAPES.iterdir())]
MODEL = "llama-2-7b"
STAGING, PRODUCTION = Deployment(MODEL, "staging"), Deployment(MODEL, "production")

Place = tuple[str | int, ...]

PLACEMENT = {
    *("nodeSelector", "nodeName", "affinity", "tolerations", "topologySpreadConstraints"),
    *("priorityClassName", "schedulerName", "serviceAccountName", "imagePullSecrets"),
    "terminationGracePeriodSeconds",
}
BY_NAME = ("image", "model", "canary", "rollout")
"""What belongs to the build whatever a chart makes of it."""
PROBES = {"startupProbe", "readinessProbe", "livenessProbe"}
READ = ("model",)
"""Annotations that a container of one of the charts reads."""
OTHERS: dict[type, list[Any]] = {
    str: [
        *("{}-other", "other", "9Gi", "77", "sha256:" + "9" * 64, "Always", "Recreate", "99%"),
        *("NodePort", "99s", "{}/other", "a/b:c", "e2e.example.com/x"),
    ],
    bool: [],
    int: [7, 77, 13, 0],
    float: [0.5, 7.5],
    type(None): [77, "other"],
    list: [
        ["--quantization=fp8"],
        [{"name": "other", "value": "fp8"}],
        [{"name": "other", "emptyDir": {}}],
        [{"name": "tmp", "mountPath": "/other"}],
        [{"name": "other"}],
        [{"operator": "Exists"}],
        [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    ],
    dict: [{"name": "other", "key": "other"}, {"other": "other"}, {"nodeAffinity": {}}],
}
"""Values that a leaf may be set to, by the type of its own; {} is its own."""


@dataclass
class Tried:
    """One leaf, set to each value that the chart takes."""

    leaf: str
    refused: int = 0
    harmless: int = 0
    escaped: tuple[str, ...] = ()
    needless: tuple[str, ...] = ()


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from leaves(inner, (*place, key))
    else:
        yield place, value


def others(own: Any) -> list[Any]:
    found = [each.format(own) if isinstance(each, str) else each for each in OTHERS[type(own)]]
    found += [not own] if isinstance(own, bool) else []
    return [each for each in found if each != own]


def overlay_of(defaults: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """Values that set that leaf alone; Helm replaces a list whole."""
    lists = next((n for n, key in enumerate(place) if isinstance(key, int)), len(place))
    inner: Any = value
    if lists < len(place):
        whole = defaults
        for key in place[:lists]:
            whole = whole[key]
        inner = copy.deepcopy(whole)
        at = inner
        for key in place[lists:-1]:
            at = at[key]
        at[place[-1]] = value
    for key in reversed(place[:lists]):
        inner = {key: inner}
    return inner  # type: ignore[no-any-return]


def what_serves(objects: list[dict[str, Any]]) -> str:
    """What counts, by rules that are this module's own and simple."""
    found: list[Any] = []

    def pods(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            if isinstance(value.get("containers"), list):
                yield {
                    key: [
                        {k: v.get("exec") if k in PROBES else v for k, v in each.items()}
                        for each in inner
                    ]
                    if key in ("containers", "initContainers")
                    else inner
                    for key, inner in value.items()
                    if key not in PLACEMENT and inner not in ({}, [], None)
                }
            for inner in value.values():
                yield from pods(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from pods(inner)

    for each in objects:
        spec = each.get("spec") or {}
        hook = (each["metadata"].get("annotations") or {}).get("helm.sh/hook")
        if each["kind"] == "ConfigMap":
            found.append(each["data"])
        if each["kind"] in ("PersistentVolume", "Service"):
            found.append([spec.get(key) for key in ("nfs", "selector")])
        if each["kind"] == "VirtualService":
            found.append(spec["http"])
        if each["kind"] == "PersistentVolumeClaim":
            found.append(spec.get("dataSource"))
        if hook != "test" and spec.get("replicas") != 0 and (run := list(pods(each))):
            found.append([each["kind"], each["metadata"]["name"], run])
            about = (spec.get("template") or {}).get("metadata") or {}
            found.append([v for k, v in (about.get("annotations") or {}).items() if k in READ])
            claims = spec.get("volumeClaimTemplates") or ()
            found.append([claim["spec"].get("dataSource") for claim in claims])
        if each["kind"] == "LeaderWorkerSet":
            found.append(spec["leaderWorkerTemplate"]["size"])
    return json.dumps(sorted(json.dumps(each, sort_keys=True) for each in found))


@pytest.fixture
def rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helm renders the same values of the one chart once."""
    known: dict[Any, list[dict[str, Any]]] = {}
    render = Helm.template

    def template(
        helm: Helm,
        release: str,
        chart: Path,
        *,
        namespace: str,
        values: Sequence[Path] = (),
        **more: Any,
    ) -> list[dict[str, Any]]:
        given = [yaml.safe_load(file.read_text()) for file in values]
        key = release, namespace, json.dumps([each for each in given if each]), str(more)
        if key not in known:
            known[key] = render(helm, release, chart, namespace=namespace, values=values, **more)
        return copy.deepcopy(known[key])

    monkeypatch.setattr(Helm, "template", template)


class Trial:
    """Tries overlays of one chart in production, while staging has none."""

    def __init__(self, chart: Path, helm: str, folder: Path) -> None:
        self.chart, self.helm, self.folder = chart, helm, folder
        self.defaults = yaml.safe_load((chart / "values.yaml").read_text())
        self.gated = self.platform(folder / "gated", {}).build(STAGING, {})
        self.serves = self.rendered({}, folder / "gated")

    def platform(self, folder: Path, overlay: dict[str, Any]) -> KubernetesPlatform:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "values-staging.yaml").write_text("{}\n")
        (folder / "values-production.yaml").write_text(yaml.safe_dump(overlay))
        return KubernetesPlatform(
            namespace="system",
            context=None,
            chart=self.chart,
            service_url="http://x",
            helm=self.helm,
            overlays=folder,
        )

    def rendered(self, overlay: dict[str, Any], folder: Path) -> str:
        file = folder / "alone.yaml"
        file.write_text(yaml.safe_dump(overlay))
        return what_serves(
            Helm(self.helm).template(
                PRODUCTION.release, self.chart, namespace="system", values=[file]
            )
        )

    def accepted(self, folder: Path, overlay: dict[str, Any]) -> bool:
        try:
            build: Build = self.platform(folder, overlay).build(PRODUCTION, {})
        except (UsageError, DeployError):
            return False
        return build == self.gated

    def leaf(self, number: int, place: Place, own: Any) -> Tried:
        tried = Tried(".".join(map(str, place)))
        folder = self.folder / str(number)
        for value in others(own):
            overlay = overlay_of(self.defaults, place, value)
            accepted = self.accepted(folder, overlay)
            folder.mkdir(exist_ok=True)
            try:
                same = self.rendered(overlay, folder) == self.serves
            except UsageError:
                assert not accepted
                tried.refused += place[0] in BY_NAME
                continue  # the chart does not take it either way
            text = f"{tried.leaf}: {value!r}"
            tried.refused += not accepted
            tried.harmless += accepted and same
            tried.escaped += (text,) if accepted and not same else ()
            tried.needless += (text,) if same and not accepted else ()
            if tried.refused or tried.harmless:
                break
        return tried


@pytest.mark.parametrize("chart", CHART_FOLDERS, ids=lambda path: path.name)
def test_no_leaf_of_the_values_changes_what_serves_unnoticed(
    chart: Path, helm_binary: str, tmp_path: Path, rendered_once: None
) -> None:
    copied = Path(shutil.copytree(chart, tmp_path / "chart"))
    trial = Trial(copied, helm_binary, tmp_path)
    found = list(leaves(trial.defaults))
    with ThreadPoolExecutor(2) as pool:
        tried = list(pool.map(lambda each: trial.leaf(each[0], *each[1]), enumerate(found)))
    count = Counter(
        "untried" if not (t.refused or t.harmless) else "refused" if t.refused else "harmless"
        for t in tried
    )
    print(f"{chart.name}: {len(tried)} leaves, {dict(count)}")  # noqa: T201 - shown by -s

    assert [each for t in tried for each in t.escaped] == []
    needless = [each for t in tried for each in t.needless if not each.startswith(BY_NAME)]
    assert needless == []
    assert [t.leaf for t in tried if not (t.refused or t.harmless)] == []
