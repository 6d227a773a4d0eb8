"""The Helm command line: what it finds, and how its failures are told."""

import json
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cluster.required import each_helm

from vllm_rollout.model.errors import DeployError, RolloutError, UnreachableError, UsageError
from vllm_rollout.platform.kubernetes import command
from vllm_rollout.platform.kubernetes.command import BusyError, ReleaseNotFoundError, WebhookError
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.ports import free_port


@pytest.fixture
def dead_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kubeconfig whose API server's port refuses connections; gives the address."""
    address = f"http://127.0.0.1:{free_port()}"
    named = {"name": "dead", "cluster": {"server": address}, "user": {}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "dead",
        "clusters": [named],
        "users": [{"name": "dead", "user": {}}],
        "contexts": [{"name": "dead", "context": {"cluster": "dead", "user": "dead"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    monkeypatch.setenv("KUBECONFIG", str(path))
    return address


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run `upgrade`, a Python script in place of Helm's verb of that name."""
    monkeypatch.chdir(tmp_path)

    def run_script(script: str, *, timeout_seconds: float = 30.0) -> str:
        Path("upgrade").write_text(script)
        return command.run(
            sys.executable, ["upgrade"], timeout_seconds=timeout_seconds, where="the test"
        )

    return run_script


def test_a_missing_binary_is_unreachable_and_says_what_to_install() -> None:
    with pytest.raises(UnreachableError, match="no-such-helm") as caught:
        _ = Helm("no-such-helm").version

    assert caught.value.address == "no-such-helm"
    assert "Install Helm" in caught.value.remedy
    assert "--base-url URL" in caught.value.remedy
    assert "--platform local" in caught.value.remedy


def test_something_that_is_not_helm_is_refused() -> None:
    with pytest.raises(UsageError, match="is version"):
        _ = Helm("echo").version


@each_helm
def test_the_version_decides_how_to_wait(helm_binary: str) -> None:
    helm = Helm(helm_binary)

    waits = {3: "--wait", 4: "--wait=watcher"}
    assert helm._waiting(timedelta(minutes=15)) == [waits[helm.version.major], "--timeout", "900s"]


@each_helm
def test_a_dead_cluster_is_never_an_empty_history(helm_binary: str, dead_cluster: str) -> None:
    with pytest.raises(UnreachableError) as caught:
        Helm(helm_binary).history("llama-2-7b-production", namespace="system")

    assert caught.value.address.startswith(dead_cluster)


@each_helm
@pytest.mark.parametrize("broken", ["{{ .Values.", '{{ fail "no" }}'])
def test_a_broken_chart_is_a_usage_error(helm_binary: str, tmp_path: Path, broken: str) -> None:
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: broken\nversion: 0.1.0\n")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "a.yaml").write_text(broken)

    with pytest.raises(UsageError, match=r"a\.yaml"):
        Helm(helm_binary).template("r", tmp_path, namespace="system")


@pytest.mark.parametrize(
    ("said", "kind", "in_message"),
    [
        ("Error: release: not found", ReleaseNotFoundError, "not found"),
        (
            "Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress",
            DeployError,
            "in progress",
        ),
        (
            'level=WARN msg="upgrade failed"\nError: UPGRADE FAILED: context deadline exceeded',
            DeployError,
            "helm upgrade: UPGRADE FAILED",
        ),
        (
            (
                'Error: Kubernetes cluster unreachable: Get "https://10.0.0.1:6443/version": '
                "dial tcp 10.0.0.1:6443: connect: connection refused"
            ),
            UnreachableError,
            "unreachable",
        ),
        (
            (
                'Error: query: failed to query with labels: secrets is forbidden: User "ci" cannot '
                'list resource "secrets" in API group "" in the namespace "system"'
            ),
            UnreachableError,
            'cannot list resource "secrets"',
        ),
        (
            (
                "Error: values don't meet the specifications of the schema(s) in the following "
                "chart(s):\nvllm-deployment:\n- at '': additional properties 'modl' not allowed"
            ),
            UsageError,
            "modl",
        ),
        (
            (
                'Error: UPGRADE FAILED: cannot patch "m" with kind Ingress: Internal error '
                'occurred: failed calling webhook "validate.nginx.example": failed to call '
                'webhook: Post "https://nginx.svc:443/": dial tcp 10.0.0.7:443: connect: '
                "connection refused"
            ),
            WebhookError,
            "validate.nginx.example",
        ),
        (
            (
                "Error: UPGRADE FAILED: server-side apply failed for object a/m "
                "networking.k8s.io/v1, Kind=Ingress: Internal error occurred: failed calling "
                'webhook "x.example": failed to call webhook: Post "https://x.svc:443/": '
                "dial tcp: lookup x.svc: no such host"
            ),
            WebhookError,
            "x.example",
        ),
        (
            (
                "Error: INSTALLATION FAILED: 1 error occurred:\n\t* Internal error occurred: "
                'failed calling webhook "x.example": failed to call webhook: an error on the '
                'server ("") has prevented the request from succeeding'
            ),
            WebhookError,
            "x.example",
        ),
        (
            (
                "Error: UPGRADE FAILED: conversion webhook for keda.sh/v1, Kind=ScaledObject "
                'failed: Post "https://keda.svc:443/convert": net/http: TLS handshake timeout'
            ),
            WebhookError,
            "keda.sh/v1",
        ),
        (
            (
                'Error: UPGRADE FAILED: admission webhook "images.example" denied the request: '
                "registry: dial tcp 10.0.0.9:443: connect: connection refused"
            ),
            DeployError,
            "images.example",
        ),
        (
            (
                "Error: query: failed to query with labels: the server is currently unable to "
                "handle the request (get secrets)"
            ),
            BusyError,
            "unable to handle",
        ),
        ("", DeployError, "exit code 1"),
    ],
)
def test_what_helm_says_decides_the_kind_of_error(
    run_script: Callable[..., str], said: str, kind: type[RolloutError], in_message: str
) -> None:
    with pytest.raises(kind, match=re.escape(in_message)) as caught:
        run_script(f"import sys; sys.stderr.write({said!r}); sys.exit(1)")

    assert type(caught.value) is kind
    assert "WARN" not in str(caught.value)


def test_a_busy_api_server_is_asked_again_by_helm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_PAUSES_SECONDS", (0.0, 0.0, 0.0))
    Path("upgrade").write_text(
        "import pathlib, sys\n"
        "with open('asked', 'a') as asked: asked.write('.')\n"
        "if len(pathlib.Path('asked').read_text()) < 3:\n"
        "    sys.exit('Error: the server is currently unable to handle the request')\n"
        "print('done')\n"
    )

    def ask() -> str:
        return command.patiently(
            lambda seconds: command.run(
                sys.executable, ["upgrade"], timeout_seconds=seconds, where="the test"
            ),
            timeout_seconds=60,
        )

    assert ask() == "done\n"
    assert Path("asked").read_text() == "..."
    Path("asked").unlink()
    monkeypatch.setattr(command, "_PAUSES_SECONDS", (61.0,))
    with pytest.raises(BusyError):  # no longer than the command may take
        ask()
    assert Path("asked").read_text() == "."


def test_secrets_are_taken_out_of_errors(
    run_script: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_PASSWORD", "correct horse")
    script = "import sys; sys.exit('Error: correct horse refused, Bearer abc.def as well')"

    with pytest.raises(DeployError) as caught:
        run_script(script)

    assert "correct horse" not in str(caught.value)
    assert "abc.def" not in str(caught.value)


def test_a_command_that_hangs_is_ended_in_order(
    run_script: Callable[..., str], tmp_path: Path
) -> None:
    ended = tmp_path / "ended"
    script = (
        "import pathlib, signal, sys, time\n"
        f"def end(*_): pathlib.Path({str(ended)!r}).touch(); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "time.sleep(60)\n"
    )

    with pytest.raises(DeployError, match="did not return"):
        run_script(script, timeout_seconds=2.0)

    assert ended.exists(), "it was killed without a chance to tidy up"
