"""Inconclusive gates of a target that runs the build: figures against the build, or nothing."""

from vllm_rollout.model.evidence import GateResult
from vllm_rollout.model.verdict import Outcome

_EVEN = 0.5
"""Below it, figures are worse than those of a build that is just at the limit would mostly be."""


def seen_against(gate: GateResult) -> bool:
    """Return whether figures of an inconclusive gate are against the build, too few to fail it.

    Otherwise nothing was seen: no data, no answer, a limit that the data cannot decide, or too few
    requests that were all well.
    """
    return any(
        verdict.p_value is not None and verdict.p_value < _EVEN
        for verdict in gate.verdicts
        if verdict.outcome is Outcome.INCONCLUSIVE
    )
