"""A real image registry on loopback: Debian's docker-registry, with or without a password."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml
from cluster.control_plane import wait_until_ok
from cluster.required import debian_tool

from vllm_rollout.load.process_group import ProcessGroup
from vllm_rollout.ports import free_port

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
USER, PASSWORD = "puller", "correct horse"
_HTPASSWD = "puller:$2y$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n"
"""bcrypt of `PASSWORD`."""


@dataclass(frozen=True, slots=True)
class Registry:
    """Where it listens (`127.0.0.1:port`), and how to put images into it."""

    host: str
    auth: tuple[str, str] | None

    def push(self, repository: str, tag: str, *, content: str = "") -> str:
        """Push an image of one small layer; give its digest. Other content, another digest."""
        with httpx.Client(base_url=f"http://{self.host}/v2/{repository}", auth=self.auth) as api:
            layer = self._push_blob(api, f"a layer {content}".encode())
            config = self._push_blob(api, b"{}")
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
                "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", **layer}],
            }
            answer = api.put(
                f"/manifests/{tag}",
                content=json.dumps(manifest),
                headers={"Content-Type": MANIFEST},
            )
            answer.raise_for_status()
            return str(answer.headers["Docker-Content-Digest"])

    def _push_blob(self, api: httpx.Client, content: bytes) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        begun = api.post("/blobs/uploads/")
        begun.raise_for_status()
        place = httpx.URL(begun.headers["Location"]).copy_merge_params({"digest": digest})
        api.put(place, content=content).raise_for_status()
        return {"digest": digest, "size": len(content)}


@contextmanager
def running_registry(folder: Path, *, password: bool = False) -> Iterator[Registry]:
    """A registry that keeps its images in `folder`; with `password` only `USER` may read."""
    host = f"127.0.0.1:{free_port()}"
    config: dict[str, object] = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "images")}},
        "http": {"addr": host},
    }
    if password:
        (folder / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    file = folder / "registry.yml"
    file.write_text(yaml.safe_dump(config))
    command = ["setpriv", "--pdeathsig", "KILL", debian_tool("docker-registry"), "serve", str(file)]
    auth = (USER, PASSWORD) if password else None
    with (
        ProcessGroup(command, env={}, cwd=folder, log=folder / "registry.log"),
        httpx.Client(base_url=f"http://{host}", auth=auth) as client,
    ):
        wait_until_ok(client, "/v2/")
        yield Registry(host, auth)
