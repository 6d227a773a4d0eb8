"""Releases whose history the platform does not have, though the store knows revisions of them."""

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UsageError
from vllm_rollout.next_command import release_command
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.rollout.journal import last_entry


def ensure_history(platform: ReleaseReader, deployment: Deployment) -> None:
    """Return if the platform has a history of the release, or nothing says that there was one.

    Raises:
        UsageError: what is there cannot be returned to, and what is known of it is of no use.
    """
    if platform.history(deployment):
        return
    if expected := _expected(platform, deployment):
        raise UsageError(
            f"{deployment} has no history, and the store knows of one: {expected}. It is kept by "
            "another Helm driver, in another namespace or cluster, or was uninstalled by hand",
            remedy="If it is elsewhere, choose that: --kube-context, --namespace, or HELM_DRIVER "
            "for a release that this version has not deployed yet. If it is gone, this makes room "
            f"for a new deployment: {release_command('uninstall', deployment)}",
        )


def _expected(platform: ReleaseReader, deployment: Deployment) -> str:
    """A revision that the history should have, as text; "" where it may have none.

    Where the platform has no record of its own (of an earlier version), what has passed says so.
    """
    recorded = platform.expected_history(deployment)
    if recorded is not None:
        return recorded
    if passed := platform.store.keys(f"passed/{deployment.release}/"):
        return f"revision {int(passed[-1].rpartition('/')[2])} has passed its gates"
    entry = last_entry(platform.store, deployment.model)
    if entry is None or entry.target != deployment.environment or entry.before is None:
        return ""
    return f"run {entry.run_id} found revision {entry.before}"
