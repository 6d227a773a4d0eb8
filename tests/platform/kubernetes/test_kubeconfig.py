"""The cluster and identity that Helm gets: those of the API's client, whatever the shell says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_rollout.cli.options import Choice
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode, UnreachableError, UsageError
from vllm_rollout.platform.kubernetes import kubeconfig as kubeconfig_module
from vllm_rollout.platform.kubernetes.api import connected
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.kubeconfig import resolve_kubeconfig
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.settings import load_settings

PRODUCTION = Deployment("llama-2-7b", "production", "system")


def write(path: Path, name: str, *, current: str, **user: Any) -> Path:
    """A kubeconfig with the contexts `shared` and `name`, each of a cluster of its own."""
    path.parent.mkdir(exist_ok=True)
    names = (name, "shared")
    server = f"https://{path.stem}.example:6443"
    content = {
        "current-context": current,
        "clusters": [{"name": each, "cluster": {"server": server}} for each in names],
        "users": [{"name": each, "user": user or {"token": path.stem}} for each in names],
        "contexts": [{"name": each, "context": {"cluster": each, "user": each}} for each in names],
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """KUBECONFIG names two files; the context `one` of the first is the current one."""
    paths = [write(tmp_path / f"{name}.yaml", name, current=name) for name in ("one", "two")]
    monkeypatch.setenv("KUBECONFIG", ":".join(map(str, paths)))
    return paths[0]


@pytest.fixture
def helm(tmp_path: Path) -> str:
    """Stands in for Helm: its history has one revision, whose chart is what it was given."""
    seen = "json.dumps([dict(os.environ), open(os.environ['KUBECONFIG']).read(), sys.argv])"
    revision = "revision=1, updated='2026-01-01T00:00:00Z', status='deployed'"
    script = f"import json, os, sys; print(json.dumps([dict({revision}, chart={seen})]))"
    path = tmp_path / "helm"
    path.write_text(f"#!{sys.executable}\n{script}\n")
    path.chmod(0o700)
    return str(path)


def given_to(helm: Helm) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """Environment, kubeconfig and arguments that Helm gets."""
    environment, config, arguments = json.loads(helm.history("a", namespace="system")[0].chart)
    return environment, yaml.safe_load(config), arguments


@pytest.mark.parametrize("context", [None, "two", "shared"])
def test_helm_gets_the_cluster_and_identity_of_the_client(
    one: Path, helm: str, monkeypatch: pytest.MonkeyPatch, context: str | None
) -> None:
    kept = {"HELM_REGISTRY_CONFIG": "/r", "HELM_CACHE_HOME": "/c", "HTTPS_PROXY": "http://p"}
    dropped = {"HELM_MAX_HISTORY": "2", "HELM_KUBENEW": "x", "HELM_NAMESPACE": "system"}
    for name, value in (kept | dropped).items():
        monkeypatch.setenv(name, value)
    kubeconfig = resolve_kubeconfig(context)
    environment, config, arguments = given_to(Helm(helm, kubeconfig=lambda: kubeconfig))

    configuration = connected(kubeconfig).core.api_client.configuration
    name = context or "one"
    assert config["current-context"] == name
    [cluster], [user] = config["clusters"], config["users"]
    assert cluster["cluster"]["server"] == configuration.host
    assert configuration.host == f"https://{'two' if context == 'two' else 'one'}.example:6443"
    assert f"Bearer {user['user']['token']}" == configuration.api_key["BearerToken"]
    assert "--kube-context" not in arguments
    assert kept.items() <= environment.items()
    helms = {name for name in environment if name.startswith("HELM_")} - set(kept)
    assert helms == {"HELM_DRIVER", "HELM_MAX_HISTORY"}
    assert environment["HELM_MAX_HISTORY"] == "0"
    assert not Path(environment["KUBECONFIG"]).exists()


@pytest.mark.parametrize(
    ("user", "problem"),
    [
        ({"token": 12345}, "its token in .* is no text: quote it"),
        ({"client-certificate-data": "LS0tL"}, "its client-certificate-data in .* is no base64"),
    ],
)
def test_a_value_that_kubectl_refuses_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: dict[str, Any], problem: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(write(tmp_path / "x.yaml", "x", current="x", **user)))
    monkeypatch.setenv("HELM_KUBETOKEN", "12345")
    with pytest.raises(UsageError, match=f"kube context 'x': {problem}"):
        resolve_kubeconfig()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HELM_KUBECONTEXT", "two"),
        ("HELM_KUBEAPISERVER", "https://two.example:6443"),
        ("HELM_KUBETOKEN", "two"),
        ("HELM_KUBECAFILE", "/no/such/file"),
        ("HELM_KUBEASUSER", "root"),
        ("HELM_KUBEASGROUPS", "system:masters"),
        ("HELM_KUBETLS_SERVER_NAME", "two.example"),
        ("HELM_KUBEINSECURE_SKIP_TLS_VERIFY", "true"),
        ("HELM_NAMESPACE", "elsewhere"),
    ],
)
def test_a_shell_that_means_another_cluster_is_refused(
    one: Path, helm: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    platform = KubernetesPlatform(
        namespace="system", context=None, chart=one, service_url="http://x", helm=helm
    )

    with pytest.raises(UsageError, match=variable) as caught:
        platform.history(PRODUCTION)

    assert caught.value.exit_code is ExitCode.USAGE
    assert "one" in str(caught.value) or "system" in str(caught.value)
    assert f"unset {variable}" in caught.value.remedy
    assert variable != "HELM_KUBETOKEN" or value not in str(caught.value)


def test_a_shell_that_means_the_same_cluster_is_none(
    one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {
        "HELM_KUBECONTEXT": "one",
        "HELM_KUBEAPISERVER": "https://one.example:6443/",
        "HELM_KUBETOKEN": "one",
        "HELM_KUBEINSECURE_SKIP_TLS_VERIFY": "false",
        "HELM_NAMESPACE": "system",
    }
    for name, value in same.items():
        monkeypatch.setenv(name, value)

    assert resolve_kubeconfig(namespace="system").context == "one"


def test_files_of_a_context_are_found_beside_its_kubeconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = {"command": "bin/login", "apiVersion": "client.authentication.k8s.io/v1"}
    path = write(
        tmp_path / "there" / "one.yaml", "one", current="one", exec=plugin, tokenFile="token"
    )
    monkeypatch.setenv("KUBECONFIG", str(path))

    user = resolve_kubeconfig().user

    assert user["tokenFile"] == str(tmp_path / "there" / "token")
    assert user["exec"]["command"] == str(tmp_path / "there" / "bin" / "login")


def test_a_user_who_acts_as_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "one.yaml", "one", current="one", token="t", **{"as": "root"})
    monkeypatch.setenv("KUBECONFIG", str(path))

    with pytest.raises(UsageError, match="acts as somebody else"):
        resolve_kubeconfig()


def test_within_a_pod_helm_gets_its_service_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helm: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(UnreachableError, match="no current context"):
        resolve_kubeconfig()

    (tmp_path / "token").write_text("t")
    monkeypatch.setattr(kubeconfig_module, "_POD_IDENTITY", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    _, config, _ = given_to(Helm(helm))

    assert config["clusters"][0]["cluster"]["server"] == "https://[fd00::1]:443"
    assert config["users"][0]["user"] == {"tokenFile": str(tmp_path / "token")}
    monkeypatch.setenv("HELM_KUBECONTEXT", "two")
    with pytest.raises(UsageError, match="the cluster of this pod"):
        resolve_kubeconfig()


def test_a_run_keeps_to_the_context_that_was_current(one: Path) -> None:
    settings = load_settings(platform="kubernetes")
    write(one, "one", current="shared")

    assert Choice().for_gates(settings)[-2:] == ["--kube-context", "one"]


@pytest.mark.parametrize(
    "content", ["a: [", "[]", "current-context: a\ncontexts: [1]\n", "current-context: a\n"]
)
def test_a_kubeconfig_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(path))

    with pytest.raises(UsageError, match=r"config|context 'a'"):
        resolve_kubeconfig()
