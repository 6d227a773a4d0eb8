"""Observations of a deployment: probes, replicas, and what Prometheus counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.live_figures import Figure, FigureName
from vllm_rollout.model.request_counts import LiveCounts
from vllm_rollout.model.text import NOTHING, Printable, shown

NAME_THE_ADDRESS = "Name the server's own address, with --base-url or `service_url`."
"""What to do where something else answers in the server's place."""
_NAMES_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model that a server says it serves: its name, and what vLLM says of it; else empty.

    `root` is what the weights were loaded from, `parent` the model that a LoRA adapter adapts.
    """

    name: Printable
    root: Printable = NOTHING
    parent: Printable = NOTHING
    max_model_len: int | None = None

    def __str__(self) -> str:
        length = f"max_model_len {self.max_model_len}" if self.max_model_len else ""
        root = f"root {self.root}" if self.root else ""
        parent = f"parent {self.parent}" if self.parent else ""
        return ", ".join(filter(None, [self.name, root, parent, length]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModels:
    """Answer of `/v1/models`: the HTTP status, 0 without an answer, and the error if it failed."""

    status: int
    models: tuple[ServedModel, ...] = ()
    error: Printable = NOTHING

    def named(self, name: str) -> ServedModel | None:
        """The model of that name; None if it is not there.

        A key that is part of the name is taken out of both.
        """
        return next((each for each in self.models if each.name == shown(name)), None)

    @property
    def names(self) -> str:
        """The names as text, the first of many."""
        first = shown(", ".join(each.name for each in self.models[:_NAMES_SHOWN])) or "nothing"
        more = len(self.models) - _NAMES_SHOWN
        return f"{first} and {more:,} more" if more > 0 else first


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSample:
    """One observation of a deployment. A server that cannot be reached has failed every probe,
    unless it is known that the path was at fault. What a cache answered is not in `total`, nor what
    asked for another key or address.
    """

    total: int
    failures: int
    latencies_seconds: tuple[float, ...]
    """Of the answered probes."""
    healthy: bool
    """Whether `/health` answered 200."""
    error: str = ""
    """The first failure, readable."""
    health_cached: bool = False
    """Whether `/health` was answered by a cache: nothing is known of it."""
    cached: int = 0
    """Answers that came from a cache and show nothing of the engine."""
    cached_by: str = ""
    """What showed that of the first of them."""
    answers: tuple[tuple[str, int], ...] = ()
    """Text and number of tokens of the answered probes."""
    refused: int = 0
    """Probes that were refused for the key, or sent elsewhere: they show nothing of the build."""
    refused_because: str = ""
    """The reason of the first of them, or of `/health`."""
    health_refused: bool = False
    """Whether `/health` was refused so: nothing is known of it."""
    path_errors: str = ""
    """Connectivity errors on the path to the deployment; then nothing is known of the deployment,
    and no probe counts.
    """

    def unless(self, path_errors: UnreachableError | None) -> "ProbeSample":
        """The sample; one of nothing where what failed in it may be due to the path."""
        if path_errors is None or (self.healthy and not self.failures):
            return self
        return replace(
            self, total=0, failures=0, latencies_seconds=(), path_errors=str(path_errors)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FiguresRead:
    """Figures of one side of a deployment, read `at` that time; `problem` is why there are none."""

    at: datetime
    figures: Mapping[FigureName, Figure] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Observation of a deployment by the watch at one moment.

    `replicas` is None when the platform did not report it; probes with path errors show nothing.
    `live` is what Prometheus reports, None where it has reported nothing new or nobody asks it.
    `figures` are the readings since the observation before, where triggers on resources are on.
    """

    probes: ProbeSample
    replicas: Sequence[Replica] | None
    live: LiveCounts | None = None
    figures: Sequence[FiguresRead] = ()
