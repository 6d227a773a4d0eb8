"""A control plane that a developer has already (kind, k3d): the tests use it and leave it be.

Only what `VLLM_ROLLOUT_TEST_KUBECONFIG` names is ever used, never the KUBECONFIG of daily work:
the tests make namespaces and nodes, and delete what they made.
"""

import base64
import ssl
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import trustme
import yaml
from cluster.control_plane import write_kubeconfig

_FILES = ("certificate-authority", "client-certificate", "client-key")


class ExistingControlPlane:
    """Stands in for `ControlPlane`; tests that stop the API server are skipped."""

    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = trustme.CA(organization_name="vllm-rollout tests")
        config = yaml.safe_load(kubeconfig.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        self._cluster = self._with_files(_named(config["clusters"], context["cluster"])["cluster"])
        self._user = self._with_files(_named(config["users"], context["user"])["user"])
        self.url: str = self._cluster["server"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was started, so nothing is ended."""

    def start_api_server(self) -> None:
        """It runs."""

    def stop_api_server(self) -> None:
        """Not somebody else's."""
        pytest.skip("the API server of an existing cluster is not stopped")

    def kubeconfig(
        self, name: str, *, user: str = "", token: str = "", server: str = "", namespace: str = ""
    ) -> Path:
        """As `ControlPlane.kubeconfig`; every `user` is the kubeconfig's own."""
        cluster = self._cluster | ({"server": server} if server else {})
        credentials = {"token": token} if token else self._user if user else {}
        path = self.folder / f"{name}.kubeconfig"
        return write_kubeconfig(path, cluster, credentials, namespace=namespace)

    def client(self, user: str) -> httpx.Client:
        """The API as the kubeconfig's user."""
        token = self._user.get("token")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, verify=self.tls(user), headers=headers, timeout=30)

    def tls(self, user: str = "") -> ssl.SSLContext:
        """As `ControlPlane.tls`; every `user` is the kubeconfig's own."""
        context = ssl.create_default_context(cafile=self._cluster.get("certificate-authority"))
        if user and "client-certificate" in self._user:
            context.load_cert_chain(self._user["client-certificate"], self._user["client-key"])
        return context

    def ask(self, method: str, path: str, *, token: str) -> httpx.Response:
        """As `ControlPlane.ask`."""
        return httpx.request(
            method,
            self.url + path,
            headers={"Authorization": f"Bearer {token}"},
            json={} if method == "POST" else None,
            verify=self.tls(),
        )

    def issue(self, name: str, organization: str) -> Path:
        """A key and certificate of the tests' own; API servers of such clusters check none."""
        leaf = self.ca.issue_cert(
            "127.0.0.1", "localhost", common_name=name, organization_name=organization
        )
        path = self.folder / f"{name}.pem"
        leaf.private_key_and_cert_chain_pem.write_to_path(str(path))
        return path

    def _with_files(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The entry with what it holds inline (`…-data`) written to files."""
        found = dict(entry)
        for name in _FILES:
            if inline := found.pop(f"{name}-data", None):
                path = self.folder / name
                path.write_bytes(base64.b64decode(inline))
                path.chmod(0o600)
                found[name] = str(path)
        return found


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)
