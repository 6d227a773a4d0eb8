"""Differences between the build that was gated and the build that would be promoted.

A tag may move under an unchanged build, so the images that replicas really run are compared too.
"""

from collections.abc import Sequence

from vllm_rollout.model.deployment import Build, Deployment, Replica, Revision, newest_served
from vllm_rollout.model.errors import DeployError, ExitCode
from vllm_rollout.model.evidence import GateRun
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.rollout.result import RolloutResult


def build_drift(
    platform: ReleaseReader, source: Deployment, revision: Revision, run: GateRun, build: Build
) -> RolloutResult | None:
    """Return a refusal if `build` differs from the build that `run` gated; None if it is the same.

    `revision` is the source's revision to gate, `run` the gates' own record, `build` the build that
    chart and values make now. The source is read again: another revision may have been deployed
    while the gates ran, or after them.
    """
    if run.build is None:
        return _refused(["the gates saw no build"])
    differences = run.build.differences(build)
    if run.revision != revision.number:
        differences.append(
            f"revision: {revision.number} was to be gated, the gates saw {run.revision}"
        )
    now = newest_served(platform.history(source))
    if now is None:
        differences.append(f"revision: {revision.number} -> {source} serves nothing")
    elif (now.number, now.build) != (revision.number, run.build):
        differences.append(f"revision: {revision.number} -> {now.number}")
        differences += run.build.differences(now.build)
    differences += other_images(run.images, platform.replicas(source), build)
    return _refused(list(dict.fromkeys(differences))) if differences else None


def other_images(gated: Sequence[str], replicas: Sequence[Replica], build: Build) -> list[str]:
    """Return how the images that `replicas` run for `build` differ from the `gated` ones.

    An image that is named by its digest cannot be another one. For any other, an unknown digest is
    a difference, except where replicas run no images.
    """
    if build.image_digest:
        return []
    running = [r for r in replicas if r.ready and r.build in ("", build.digest)]
    if not gated and all(r.image is None for r in running):
        return []
    known = ", ".join(gated) or "not known"
    if not running:
        return [f"image: {known} -> no replica is ready that runs it"]
    return [
        f"image: {known} -> {r.name} runs {r.image or 'what is not known'} "
        "(its name has a tag, which may move: name it by its digest)"
        for r in running
        if not r.image or r.image not in gated
    ]


def same_images(
    platform: ReleaseReader, deployment: Deployment, build: Build, gated: Sequence[str]
) -> None:
    """Return if the replicas that run `build` in `deployment` run the images that were gated.

    Raises:
        DeployError: they do not, or it is not known; the message names the replicas.
    """
    if other := other_images(gated, platform.replicas(deployment), build):
        raise DeployError(f"{deployment} does not run what was gated: {'; '.join(other)}")


def _refused(differences: list[str]) -> RolloutResult:
    return RolloutResult(
        code=ExitCode.INCONCLUSIVE,
        conclusion="What would be promoted is not what was gated, nothing promoted: "
        + "; ".join(differences),
    )
