"""Tests of the cluster tier run on a cluster that is there already, and leave nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

from cluster.fixtures import Cluster

TESTS = Path(__file__).parents[1]
CHOSEN = "platform/kubernetes/test_platform_on_cluster.py"


def test_an_existing_cluster_is_used_and_left_as_it_was(cluster: Cluster, tmp_path: Path) -> None:
    def objects(kind: str) -> set[str]:
        items = cluster.api.get(f"/api/v1/{kind}").json()["items"]
        alive = [i["metadata"] for i in items if "deletionTimestamp" not in i["metadata"]]
        return {each["name"] for each in alive}

    before = {kind: objects(kind) for kind in ("nodes", "namespaces")}
    kubeconfig = cluster.control_plane.kubeconfig("existing", user="admin")
    command = [sys.executable, "-m", "pytest", str(TESTS / CHOSEN), "-q", "-p", "no:cacheprovider"]
    command += [
        "-n",
        "0",
        "-k",
        "(ramped or goes_away) and helm4",
        f"--basetemp={tmp_path / 'run'}",
    ]
    finished = subprocess.run(
        command,
        env={**os.environ, "VLLM_ROLLOUT_TEST_KUBECONFIG": str(kubeconfig)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert finished.returncode == 0, finished.stdout
    assert "1 passed, 1 skipped" in finished.stdout
    assert {kind: objects(kind) for kind in before} == before
