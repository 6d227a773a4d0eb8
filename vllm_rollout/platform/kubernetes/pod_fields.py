"""The fields of a pod's JSON that the suite reads."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

STARTING = {"ContainerCreating", "PodInitializing"}


class Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, frozen=True)


class State(Wire):
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    started_at: str = ""
    finished_at: str = ""


class States(Wire):
    waiting: State | None = None
    running: State | None = None
    terminated: State | None = None


class Container(Wire):
    name: str
    image_id: str = Field(default="", alias="imageID")
    ready: bool = False
    started: bool | None = None
    restart_count: int = 0
    state: States = States()
    last_state: States = States()

    @property
    def end(self) -> State | None:
        """Its end, or that of the process before; None where none has ended."""
        return self.state.terminated or self.last_state.terminated

    @property
    def fails(self) -> bool:
        """True if it cannot start, or has ended other than well."""
        waiting, ended = self.state.waiting, self.state.terminated
        if waiting and waiting.reason and waiting.reason not in STARTING:
            return True
        if ended:
            return ended.exit_code != 0
        return bool(self.restart_count and self.last_state.terminated)


class Condition(Wire):
    type: str
    status: str
    last_transition_time: datetime | None = None
    reason: str = ""
    message: str = ""


class Status(Wire):
    phase: str = "Unknown"
    reason: str = ""
    message: str = ""
    pod_ip: str = Field(default="", alias="podIP")
    conditions: Sequence[Condition] = ()
    init_container_statuses: Sequence[Container] = ()
    container_statuses: Sequence[Container] = ()


class Probe(Wire):
    period_seconds: float = 10.0
    failure_threshold: int = 3
    initial_delay_seconds: float = 0.0


class Port(Wire):
    container_port: int
    name: str = ""


class ContainerSpec(Wire):
    name: str
    image: str = ""
    command: Sequence[str] = ()
    args: Sequence[str] = ()
    ports: Sequence[Port] = ()
    resources: Mapping[str, Any] = Field(default_factory=dict)
    startup_probe: Probe | None = None


class Spec(Wire):
    node_name: str = ""
    restart_policy: str = "Always"
    node_selector: Mapping[str, str] = Field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    affinity: Mapping[str, Any] = Field(default_factory=dict)
    init_containers: Sequence[Mapping[str, Any]] = ()
    containers: Sequence[ContainerSpec] = Field(min_length=1)


class Owner(Wire):
    kind: str
    name: str = ""


class Metadata(Wire):
    name: str
    uid: str = ""
    creation_timestamp: str = ""
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)
    owner_references: Sequence[Owner] = ()
    deletion_timestamp: str | None = None
