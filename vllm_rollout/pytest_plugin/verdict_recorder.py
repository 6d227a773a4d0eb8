"""The `verdict` fixture, which records a gate's verdicts."""

import math
from dataclasses import asdict

import pytest
from pydantic import TypeAdapter, ValidationError

from vllm_rollout.judge import Outcome, Verdict, worst
from vllm_rollout.model.evidence import Attachment
from vllm_rollout.model.verdict import NoToken
from vllm_rollout.report.terminal import verdict_text

_VERDICT = TypeAdapter(Verdict)


# The public name is an attribute of an object, where mypy finds no class.
class _GateEndedError(pytest.fail.Exception):  # type: ignore[name-defined, misc]
    """Ends a gate as `pytest.fail` does."""


class GateFailedError(_GateEndedError):
    """A gate does not hold."""


class GateInconclusiveError(_GateEndedError):
    """A gate cannot be decided. Counted apart from failures; never a pass."""


class VerdictRecorder:
    """Records the verdicts of one gate and ends it at the first that is not a pass.

    Call it with a `Verdict`. A gate may call it more than once; it passes only if every verdict
    does, and a gate that never calls it is inconclusive: it judged nothing.
    """

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self.attachments: list[Attachment] = []
        self.no_token = False
        """True once a verdict showed that the server gives no token at all."""

    def __call__(self, verdict: Verdict) -> None:
        """Record `verdict`.

        Raises:
            TypeError: it is none, or a field of it is of another type, or NaN.
            GateFailedError: it is a fail.
            GateInconclusiveError: it is inconclusive.
        """
        self.no_token |= isinstance(verdict, NoToken)
        try:
            verdict = _VERDICT.validate_python(asdict(verdict))
        except ValidationError as error:
            first = error.errors()[0]
            field = first["loc"][0]
            raise TypeError(f"{field} of a verdict is {first['input']!r}: {first['msg']}") from None
        for field, value in asdict(verdict).items():  # evidence can hold neither
            if isinstance(value, float) and (math.isnan(value) or value == -math.inf):
                raise TypeError(f"{field} of a verdict is {value}: None is for what is not known")
        self.verdicts.append(verdict)
        if verdict.outcome is Outcome.FAIL:
            raise GateFailedError(verdict_text(verdict), pytrace=False)
        if verdict.outcome is Outcome.INCONCLUSIVE:
            raise GateInconclusiveError(verdict_text(verdict), pytrace=False)

    def attach(self, title: str, text: str) -> None:
        """Show `text` (a model's answer, say) beside the gate in the report."""
        self.attachments.append(Attachment(title=title, text=text))

    @property
    def outcome(self) -> Outcome:
        """The worst so far; inconclusive when nothing was judged."""
        return worst([verdict.outcome for verdict in self.verdicts])
