"""Removal of the oldest reports of a model, so that their folder does not grow for ever."""

import re
import shutil
from pathlib import Path

from vllm_rollout.model.deployment import newest_served
from vllm_rollout.platform.reader import ReleaseReader, at_home, homes
from vllm_rollout.policy import Policy
from vllm_rollout.rollout.audit_log import BY_A_PERSON, AuditLogReader
from vllm_rollout.rollout.journal import last_entry

_RUN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
"""Name of a run's folder, as `new_run_id` makes it: by name they are in the order of time."""


def remove_old_reports(
    folder: Path, platform: ReleaseReader, policy: Policy, model: str
) -> list[str]:
    """Remove the reports of runs in `folder` beyond the policy's number; return those runs.

    Those of a run that a person has decided on, that is unfinished, or that is about a build which
    serves stay: none goes where that is not known. `policy` is the model's own.

    Raises:
        RolloutError: what serves or what was decided cannot be read.
        OSError: a folder cannot be removed.
    """
    keep = policy.keep_reports
    found = folder.iterdir() if keep and folder.is_dir() else ()
    runs = sorted(each for each in found if _RUN.fullmatch(each.name) and each.is_dir())
    if keep is None or len(runs) <= keep:
        return []
    cited = _cited(platform, policy, model)
    old = [each for each in runs[:-keep] if each.name not in cited]
    for each in old:
        shutil.rmtree(each)
    return [each.name for each in old]


def _cited(platform: ReleaseReader, policy: Policy, model: str) -> set[str]:
    """Return the ids of the runs whose evidence somebody or something still goes by."""
    serving: set[str] = set()
    for environment in policy.order:
        deployment = policy.deployment(model, environment)
        history = at_home(platform, environment).history(deployment)
        # The newest one too: where nothing serves now, that is what shall.
        for revision in filter(None, (newest_served(history), *history[-1:])):
            serving.add(revision.build.digest)
    cited: set[str] = set()
    for each in homes(platform, policy.order):
        if (entry := last_entry(each.store, model)) and entry.unfinished:
            cited.add(entry.run_id)
        for decision in AuditLogReader(each.store).whole(model):
            if decision.kind in BY_A_PERSON or decision.build in serving:
                cited.add(decision.run_id)
    return cited
