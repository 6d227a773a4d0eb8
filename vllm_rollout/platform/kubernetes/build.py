"""Builds of a chart folder: what a chart makes of values, and what no environment may change of it.

A build is known by what is served: `served.py` says what of the rendered objects that is. The
chart and values it was made of are compared too, so that all else of the release is as gated.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vllm_rollout.model.deployment import Build, Deployment, canonical_digest
from vllm_rollout.model.errors import DeployError, RolloutError, UsageError
from vllm_rollout.platform.kubernetes.chart import (
    Chart,
    admit,
    copied,
    load_chart,
    make_build,
    mentioned,
)
from vllm_rollout.platform.kubernetes.composition import OWN_VALUES, Rollout
from vllm_rollout.platform.kubernetes.helm import Capabilities, Helm
from vllm_rollout.platform.kubernetes.releases import stable_templates
from vllm_rollout.platform.kubernetes.served import (
    OWNED_BY_ENVIRONMENT,
    Leaves,
    Served,
    check_owned,
    differing,
    leaves_of,
    names_of_any,
    normalised,
    served,
    unlike_build,
    value_at,
)
from vllm_rollout.platform.kubernetes.templates import (
    Json,
    pinned_images,
    templates_of,
    without_hooks,
)
from vllm_rollout.platform.kubernetes.value_files import ValueFiles

ENVIRONMENTS = ("development", "staging", "production")
_SHOWN = 5
_OF_THE_REVISION = (".Release.Revision", ".Release.IsUpgrade", ".Release.IsInstall")


def check_same(gated: Build, made: Build) -> None:
    """Let nothing pass but the build that was gated.

    Raises:
        DeployError: `made` is another; the message names each part that differs.
    """
    if gated != made:
        raise DeployError(
            "the build to apply is not what the chart and values make now: "
            + "; ".join(gated.differences(made)),
            remedy="The chart was changed since it was gated: gate the new build, or check the "
            "old chart out.",
        )


@dataclass(frozen=True, kw_only=True)
class Builds:
    """Makes builds of one chart folder, by rendering it for an environment.

    `owned` are the paths of a pod template that environments may own, `order` the environments that
    a build passes through. `cluster` reads what the cluster can do, for charts that ask for it.
    """

    helm: Helm
    chart: Path
    files: ValueFiles
    owned: Sequence[str] = OWNED_BY_ENVIRONMENT
    order: Sequence[str] = ENVIRONMENTS
    cluster: Callable[[], Capabilities] | None = None

    def __post_init__(self) -> None:
        check_owned(self.owned)

    def make(
        self, deployment: Deployment, values: Mapping[str, Any], *, chart: Path | None = None
    ) -> Build:
        """The build that `values` make in the deployment's environment; `chart` is a copy to use.

        Raises:
            UsageError: the chart, the values or the overlay cannot be used, or what is served would
                not be what the environments before serve.
            DeployError: Helm gave what is no manifest.
        """
        build = make_build(chart or self.chart, deployment, dict(values))
        with self._rendering(values, chart) as rendering:
            made = rendering.served(deployment)
            objects = rendering.objects(deployment)
            images = pinned_images(objects)
            if not any(each.runs for each in templates_of(objects)):
                raise UsageError(
                    f"the chart makes nothing that serves in {deployment.environment}",
                    remedy="Let its templates make a Deployment or StatefulSet with replicas.",
                )
            self._check_environments(rendering, deployment, made)
        return replace(build, served_digest=canonical_digest(made), image_digest=images)

    def rendered(
        self,
        deployment: Deployment,
        values: Mapping[str, Any],
        *,
        chart: Path,
        above: Sequence[Path | None],
    ) -> list[list[dict[str, Any]]]:
        """The objects under their own names, once with each of `above`: a values file over all
        others, or None.

        Raises: as `make`.
        """
        with self._rendering(values, chart) as rendering:
            return [rendering.objects(deployment, above=each) for each in above]

    def unlike_applied(
        self, deployment: Deployment, rollout: Rollout, applied: Sequence[Json]
    ) -> list[str]:
        """Return how the objects that Helm applied serve something other than the rollout's build.

        Nothing where the chart has changed since: then the build cannot be rendered any more.
        """
        if load_chart(self.chart).digest != rollout.build.chart_digest:
            return []
        with self._rendering(rollout.values) as rendering:
            expected = self.served(without_hooks(rendering.objects(deployment)))
        stable = stable_templates(applied) if rollout.previous is not None else []
        found = unlike_build(
            self.served(applied),
            expected,
            kept=self.kept(next(iter(stable), None)),
            whole=rollout.previous is None,
        )
        if found and (read := mentioned(self.chart, _OF_THE_REVISION)):
            text = "and a build is rendered as an upgrade of revision 1"
            found.append(f"the chart's templates read {', '.join(read)}, {text}")
        return found

    def served(self, objects: Iterable[Json]) -> Served:
        """The served part of objects."""
        return served(objects, self.owned)

    def kept(self, template: Json | None) -> Leaves | None:
        """The served part of the pod template that stable pods keep during a ramp."""
        return None if template is None else leaves_of(template, self.owned)

    @contextmanager
    def _rendering(
        self, values: Mapping[str, Any], chart: Path | None = None
    ) -> Iterator["_Rendering"]:
        with tempfile.TemporaryDirectory(prefix="vllm-rollout-") as folder:
            if chart is None:
                chart = copied(self.chart, Path(folder))
                admit(chart, OWN_VALUES)
            yield _Rendering(self, load_chart(chart), Path(folder), values, self._able(chart))

    def _able(self, chart: Path) -> Capabilities | None:
        """Return what the cluster can do, if the chart asks and it can be read."""
        if self.cluster is not None and mentioned(chart, (".Capabilities",)):
            with suppress(RolloutError):
                return self.cluster()
        return None

    def _check_environments(
        self, rendering: "_Rendering", deployment: Deployment, made: Served
    ) -> None:
        """Return if every environment before this one serves the same.

        Where none of them has an overlay, what the values alone make is what counts.
        """
        if deployment.environment not in self.order:
            return
        before = self.order[: self.order.index(deployment.environment)]
        known = [e for e in before if (self.files.overlays / f"values-{e}.yaml").is_file()]
        for name in reversed(known):
            other = Deployment(deployment.model, name, deployment.namespace)
            self._ensure_same(rendering, (other, True), (deployment, made))
        if before and not known:
            self._ensure_same(rendering, (deployment, False), (deployment, made))

    def _ensure_same(
        self,
        rendering: "_Rendering",
        other: tuple[Deployment, bool],
        own: tuple[Deployment, Served],
    ) -> None:
        """Return if both serve the same; `other` has its overlay or has it not.

        Raises:
            UsageError: the message names what differs, both values, and the files that set them.
        """
        (reference, overlaid), (deployment, made) = other, own
        try:
            theirs = rendering.served(reference, overlaid=overlaid)
        except RolloutError:
            if overlaid:
                raise
            return  # the chart needs what only overlays have, so there is nothing to compare
        paths = differing(theirs, made)
        if not paths:
            return
        where = f"in {reference.environment}" if overlaid else "without that file"
        setters = {
            str(self.files.overlays / f"values-{each.environment}.yaml"): changed
            for each in (deployment, reference)
            if (changed := rendering.changed_by_overlay(each))
        }

        def shown(workload: str) -> str:
            return workload.replace(names_of_any(deployment)[0], deployment.release)

        lines: dict[str, list[str]] = {}
        for workload, path in paths[:_SHOWN]:
            files = [file for file, changed in setters.items() if (workload, path) in changed]
            lines.setdefault(" and ".join(files) or "the chart's templates", []).append(
                f"{shown(workload)}: {path} is {value_at(made, workload, path)} in "
                f"{deployment.environment}, {value_at(theirs, workload, path)} {where}"
            )
        more = f"; and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
        found = "; ".join(f"{by}: {'; '.join(each)}" for by, each in lines.items())
        raise UsageError(
            f"{deployment} would not serve what was gated. This belongs to the build and not to an "
            f"environment, and is set by {found}{more}",
            remedy="Move it to the values of the deployment, so that it passes the gates; or list "
            "the path under kubernetes.environment_owns, if it changes nothing that is served.",
        )


@dataclass(frozen=True, slots=True)
class _Rendering:
    """A copy of the chart and the values of one build, to be rendered for environments."""

    builds: Builds
    chart: Chart
    folder: Path
    values: Mapping[str, Any]
    able: Capabilities | None = None
    _known: dict[Any, list[dict[str, Any]]] = field(default_factory=dict, init=False)

    def objects(
        self,
        deployment: Deployment,
        *,
        names: tuple[str, str] | None = None,
        overlaid: bool = True,
        above: Path | None = None,
        again: bool = False,
    ) -> list[dict[str, Any]]:
        """The objects that Helm makes in an upgrade, which all revisions but the first are.

        `names` stand for those of release and namespace; `again` renders once more.
        """
        release, namespace = names or (deployment.release, deployment.namespace)
        key = (deployment, names, overlaid, above, again)
        if key not in self._known:
            files = self.builds.files.write(self.folder, self.chart, deployment, self.values)
            files = files if overlaid else files[:-1]
            self._known[key] = self.builds.helm.template(
                release,
                self.chart.path,
                namespace=namespace,
                values=[*files, *([above] if above else [])],
                upgrade=True,
                able=self.able,
            )
        return self._known[key]

    def served(self, deployment: Deployment, *, overlaid: bool = True) -> Served:
        """The served part, under names that are the same everywhere. Raises: `UsageError`."""
        real, other = (
            self.builds.served(self.objects(deployment, names=names, overlaid=overlaid))
            for names in (None, names_of_any(deployment))
        )
        made = normalised(real, other, deployment)
        if made != other:
            again = self.builds.served(self.objects(deployment, overlaid=overlaid, again=True))
            if paths := differing(real, again):
                where = ": ".join(paths[0])
                raise UsageError(
                    f"the chart is not deterministic: {where} differs between two renderings",
                    remedy="Use no random function and no time in what is served.",
                )
        return made

    def changed_by_overlay(self, deployment: Deployment) -> list[tuple[str, str]]:
        """Objects and paths that the environment's overlay changes; none where that is unknown."""
        try:
            plain = self.served(deployment, overlaid=False)
        except RolloutError:
            return []
        return differing(plain, self.served(deployment))
