from typing import Any

from vllm_rollout.platform.kubernetes.live_edits import live_objects


class Api:
    """An API server that has these Deployments, and nothing else."""

    def __init__(self, *deployments: dict[str, Any]) -> None:
        self._deployments = deployments

    def request(self, _verb: str, _resource: str, _method: str, path: str, **_: Any) -> Any:
        return {"items": self._deployments if path.endswith("/deployments") else ()}


def test_what_is_being_deleted_counts_as_gone() -> None:
    stays = {"metadata": {"name": "stays"}, "spec": {"replicas": 2}}
    gone = {"name": "goes", "deletionTimestamp": "2026-11-17T09:00:00Z"}
    api: Any = Api(stays, {"metadata": gone, "spec": {"replicas": 1}})
    assert list(live_objects(api, "ns", ["any"], scaled=())) == ["Deployment stays"]
