"""Live objects of a release, as they are compared before and after a hold."""

import json
from typing import Any

from support.scripted_api import ScriptedApi

from vllm_rollout.platform.kubernetes.live_edits import live_objects


def test_what_is_being_deleted_counts_as_gone() -> None:
    stays = {"metadata": {"name": "stays"}, "spec": {"replicas": 2}}
    gone = {"name": "goes", "deletionTimestamp": "2026-11-17T09:00:00Z"}
    deployments = [stays, {"metadata": gone, "spec": {"replicas": 1}}]

    def answer(_method: str, path: str, **_: Any) -> tuple[int, str]:
        items = deployments if path.endswith("/deployments") else []
        return 200, json.dumps({"items": items})

    found = live_objects(ScriptedApi(answer), "ns", ["any"], scaled=())
    assert list(found) == ["Deployment stays"]
