"""Is what would be promoted what was gated? Every part of a build, and the revision that has it."""

from vllm_rollout.deployment import Build, Revision, newest_served
from vllm_rollout.errors import ExitCode
from vllm_rollout.release.context import Context, End
from vllm_rollout.report.evidence import GateRun


def not_what_was_gated(
    context: Context, revision: Revision, run: GateRun, build: Build
) -> End | None:
    """Why `build` may not be promoted on the word of `run`; None where all is one and the same.

    `revision` of the source is what was to be gated, `run` what the gates saw, `build` what chart
    and values make now. The source is asked again: another revision may have come while the gates
    ran, or after them.
    """
    if run.build is None:
        return _refused(["the gates saw no build"])
    differences = run.build.differences(build)
    if run.revision != revision.number:
        differences.append(
            f"revision: {revision.number} was to be gated, the gates saw {run.revision}"
        )
    now = newest_served(context.platform.history(context.source))
    if now is None:
        differences.append(f"revision: {revision.number} -> {context.source} serves nothing")
    elif (now.number, now.build) != (revision.number, run.build):
        differences.append(f"revision: {revision.number} -> {now.number}")
        differences += run.build.differences(now.build)
    return _refused(list(dict.fromkeys(differences))) if differences else None


def _refused(differences: list[str]) -> End:
    return End(
        code=ExitCode.INCONCLUSIVE,
        conclusion="What would be promoted is not what was gated, nothing promoted: "
        + "; ".join(differences),
    )
