"""Somebody works on production with Helm and kubectl while a run holds its first step."""

import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from cluster.behaviour import HEALTHY
from cluster.fixtures import Namespace
from support.real_runs import Runs

from vllm_rollout.model.deployment import Deployment, RevisionStatus
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.resources import CHARTS
from vllm_rollout.rollout.journal import Journal

MODEL = "llama-2-7b"


def made_of(version: int) -> dict[str, Any]:
    image = {"digest": "sha256:" + "5" * 64}
    return {"model": {"name": MODEL, "revision": f"v{version}"}, "image": image}


def test_what_somebody_does_in_a_hold_stops_the_run_and_stays(
    namespace: Namespace, helm_binary: str, tmp_path: Path
) -> None:
    namespace.behave(HEALTHY)
    target = Deployment(MODEL, "production", namespace.name)
    runs = Runs(lambda: namespace.platform(helm_binary, surge=2), target, made_of, tmp_path)
    first = runs.finish(1)
    assert first.wait() == ExitCode.OK, first.said
    platform = runs.connect()
    good = platform.history(target)[-1]

    def helm(*words: str) -> None:
        command = [helm_binary, *words, "-n", namespace.name, "--wait", "--timeout", "60s"]
        subprocess.run(command, check=True, capture_output=True)

    def hotfix() -> None:
        chart = str(CHARTS / "vllm-deployment")
        more = ("--reuse-values", "--set", "extraArgs={--seed=7}", "--description", "by ann")
        helm("upgrade", target.release, chart, *more)

    def scale() -> None:
        where = f"/apis/apps/v1/namespaces/{namespace.name}/deployments/{target.release}/scale"
        body = {"spec": {"replicas": 3}}
        namespace.cluster.send("PATCH", f"{where}?fieldManager=kubectl", body).raise_for_status()

    def stopped_by(deed: Any, version: int) -> str:
        run = replace(runs, in_hold=deed).finish(version)
        assert run.wait() == ExitCode.INCONCLUSIVE, run.said
        entry = Journal(platform.store, MODEL).read()
        assert entry is not None
        assert not entry.unfinished
        return run.said

    def refused(version: int) -> str:
        run = runs.finish(version)
        assert run.wait() == ExitCode.INCONCLUSIVE, run.said
        return run.said

    said = stopped_by(lambda: helm("rollback", target.release, str(good.number)), 2)
    back = platform.history(target)[-1]
    assert f"has revision {back.number}, 'Rollback to {good.number}'" in said
    assert (back.build, back.status) == (good.build, RevisionStatus.DEPLOYED)
    assert {r.build for r in platform.replicas(target) if r.ready} == {good.build.digest}

    said = stopped_by(hotfix, 3)
    assert f"has revision {platform.history(target)[-1].number}, 'by ann'" in said
    assert platform.history(target)[-1].description == "by ann"
    assert "--seed=7" in str(namespace.list("deployments", "apis/apps/v1"))

    platform.rollback(target, good.number, description="", timeout=timedelta(seconds=60))
    said = stopped_by(scale, 4)
    assert f"spec.replicas of Deployment {target.release} is 3, set by kubectl, and was 1" in said
    live = {d["metadata"]["name"]: d for d in namespace.list("deployments", "apis/apps/v1")}
    assert live[target.release]["spec"]["replicas"] == 3

    def pause() -> None:
        where = f"/apis/apps/v1/namespaces/{namespace.name}/deployments/{target.release}"
        body = {"spec": {"paused": True}}
        namespace.cluster.send("PATCH", f"{where}?fieldManager=kubectl", body).raise_for_status()

    platform.rollback(target, good.number, description="", timeout=timedelta(seconds=60))
    pause()
    assert f"spec.paused of Deployment {target.release} is true, set by kubectl" in refused(5)
    # The way back always works: it lets the Deployment change again.
    platform.rollback(target, good.number, description="", timeout=timedelta(seconds=60))
    assert platform.field_conflicts(target) == []
