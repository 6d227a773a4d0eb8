"""The emergency override: a named person has conditions passed over, for a stated reason.

It passes over time and people: the soak, the deployment windows and freezes, the on-call check, a
sign-off that is pending, and evidence of stages before the one that is gated. The gates run and
must pass, a rejection stands, the ramp is climbed and production is watched, as ever.
"""

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Emergency:
    """Who overrides and why. `passed_over` fills with what would have stopped the rollout."""

    by: str
    reason: str
    passed_over: list[str] = field(default_factory=list)
