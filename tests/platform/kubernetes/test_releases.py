"""Which revision of a release serves: what its pods run decides, and not Helm alone."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from vllm_rollout.model.deployment import Build, Deployment, Replica
from vllm_rollout.platform.kubernetes.composition import Rollout
from vllm_rollout.platform.kubernetes.helm import Helm, HelmRevision
from vllm_rollout.platform.kubernetes.releases import Releases

PRODUCTION = Deployment("llama-2-7b", "production")
FAILED = 'Upgrade "llama-2-7b-production" failed: context deadline exceeded'
BACK = 'Rollback "llama-2-7b-production" failed: context deadline exceeded'


def build(name: str) -> Build:
    return Build(values_digest=name)


class KnownBuilds(Releases):
    """Releases of which it is known which build each revision has."""

    def __init__(self, history: Sequence[tuple[str, str, str]], running: Sequence[Replica]) -> None:
        entries = [
            HelmRevision(
                revision=number,
                updated=datetime(2026, 11, 18, tzinfo=UTC),
                status=status,
                chart="vllm-deployment-0.1.0",
                description=description,
            )
            for number, (_, status, description) in enumerate(history, start=1)
        ]
        helm: Any = type("Histories", (), {"history": lambda *_, **__: entries})()
        super().__init__(cast("Helm", helm), lambda _: running)
        self._builds = [name for name, _, _ in history]

    def rollout(self, deployment: Deployment, entry: HelmRevision) -> Rollout:
        known: Any = type("Known", (), {"digest": build(self._builds[entry.revision - 1]).digest})
        return cast("Rollout", known)


def pod(name: str, *, ready: bool = True) -> Replica:
    return Replica(name="p", phase="Running", ready=ready, restarts=0, build=build(name).digest)


@pytest.mark.parametrize(
    ("history", "pods", "serves", "returns_to"),
    [
        pytest.param(
            [
                ("one", "superseded", ""),
                ("two", "superseded", ""),
                ("one", "failed", BACK),
                ("bad", "superseded", FAILED),
                ("two", "failed", BACK),
            ],
            [pod("two"), pod("bad", ready=False)],
            2,
            2,
            id="a way back that failed from one that never came up",
        ),
        pytest.param(
            [
                ("one", "superseded", ""),
                ("two", "superseded", ""),
                ("bad", "superseded", FAILED),
                ("two", "failed", BACK),
            ],
            [],
            None,
            2,
            id="the same, and no pod is there",
        ),
        pytest.param(
            [
                ("one", "superseded", ""),
                ("bad", "superseded", ""),
                ("one", "superseded", "Rollback to 1"),
                ("worse", "superseded", ""),
                ("one", "failed", "Rollback to 3"),
            ],
            [],
            None,
            3,
            id="Helm 3 called deployed what was never ready",
        ),
        pytest.param(
            [("one", "superseded", ""), ("two", "deployed", "")],
            [pod("one"), pod("one")],
            1,
            1,
            id="kubectl rollout undo",
        ),
        pytest.param(
            [("one", "superseded", ""), ("two", "deployed", "")],
            [pod("one"), pod("two", ready=False)],
            2,
            2,
            id="a step of a ramp whose new pod restarts",
        ),
        pytest.param(
            [("one", "superseded", ""), ("two", "deployed", "")],
            [Replica(name="p", phase="Running", ready=True, restarts=0)],
            2,
            2,
            id="pods that do not say which build they are",
        ),
    ],
)
def test_what_serves_is_read_from_the_pods(
    history: Sequence[tuple[str, str, str]],
    pods: Sequence[Replica],
    serves: int | None,
    returns_to: int,
) -> None:
    releases = KnownBuilds(history, pods)
    entries = releases.entries(PRODUCTION)
    served = releases.served(PRODUCTION, entries)
    back = releases.to_return_to(PRODUCTION, entries)
    assert (served.revision if served else None, back.revision if back else None) == (
        serves,
        returns_to,
    )
