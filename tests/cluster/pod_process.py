"""A pod's command as a real process on this machine, for pods whose behaviour is `running`.

Volumes are folders, Secrets and ConfigMaps are read from the API server, and the network is this
machine's loopback: a headless Service's name and `*` are 127.0.0.1, and each port number stands for
a free one, the same in the whole namespace.
"""

import base64
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.behaviour import Behaviour

from vllm_rollout.load.process_group import ProcessGroup
from vllm_rollout.ports import free_port

Json = Mapping[str, Any]
Read = Callable[[str], Any]
"""An object of the API server's by its path."""


class PodProcesses:
    """The processes of all pods that run one; `folder` holds their volumes and logs."""

    def __init__(self, folder: Path, read: Read) -> None:
        self._folder = folder
        self._read = read
        self._processes: dict[str, ProcessGroup] = {}
        self._ports: dict[tuple[str, int], int] = {}

    def behaviour(self, pod: Json, behaviour: Behaviour) -> Behaviour:
        """How the pod behaves now: its process is started where it was not."""
        uid = pod["metadata"]["uid"]
        if uid not in self._processes:
            self._processes[uid] = self._start(pod, behaviour.names or {})
        process = self._processes[uid]
        if process.running:
            return behaviour
        process.end()
        code = process.exit_code or 0
        return replace(behaviour, exited=code if code >= 0 else 128 - code)

    def process(self, pod: Json) -> ProcessGroup | None:
        """The pod's process, to harm it."""
        return self._processes.get(pod["metadata"]["uid"])

    def port(self, namespace: str, number: int) -> int:
        """The port on loopback that stands for a pod's port."""
        return self._ports.setdefault((namespace, number), free_port())

    def end(self, pod: Json) -> None:
        """As a kubelet does it: SIGTERM, then SIGKILL."""
        process = self._processes.get(pod["metadata"]["uid"])
        if process is not None:
            process.end()

    def close(self) -> None:
        """End all."""
        for process in self._processes.values():
            process.end()

    def _start(self, pod: Json, names: Mapping[str, str]) -> ProcessGroup:
        namespace = pod["metadata"]["namespace"]
        home = self._folder / pod["metadata"]["name"]
        home.mkdir(parents=True, exist_ok=True)
        container = pod["spec"]["containers"][0]
        volumes = {v["name"]: self._volume(home, namespace, v, names) for v in self._volumes(pod)}
        mounts = {
            mount["mountPath"]: str(volumes[mount["name"]])
            for mount in container.get("volumeMounts", ())
            if mount["name"] in volumes
        }
        words = {"python": sys.executable, "*": "127.0.0.1"} | self._network(namespace)
        for port in container.get("ports", ()):
            number = port["containerPort"]
            words[str(number)] = str(self.port(namespace, number))

        def here(text: str) -> str:
            if text in words:
                return words[text]
            for path, folder in mounts.items():
                if text == path or text.startswith(f"{path}/"):
                    return folder + text[len(path) :]
            return _renamed(text, names)

        command = [here(word) for word in (*container["command"], *container.get("args", ()))]
        env = {e["name"]: here(self._value(pod, e)) for e in container.get("env", ())}
        return ProcessGroup(
            ["setpriv", "--pdeathsig", "KILL", *command],
            env={"PATH": os.environ["PATH"]} | env,
            cwd=home,
            log=home / "log",
        )

    def _volumes(self, pod: Json) -> list[Json]:
        known = ("emptyDir", "configMap")
        return [v for v in pod["spec"].get("volumes", ()) if any(kind in v for kind in known)]

    def _volume(self, home: Path, namespace: str, volume: Json, names: Mapping[str, str]) -> Path:
        folder = home / str(volume["name"])
        folder.mkdir()
        if "configMap" in volume:
            path = f"/api/v1/namespaces/{namespace}/configmaps/{volume['configMap']['name']}"
            for name, text in self._read(path)["data"].items():
                (folder / name).write_text(_renamed(text, names))
        return folder

    def _network(self, namespace: str) -> dict[str, str]:
        words = {}
        for service in self._read(f"/api/v1/namespaces/{namespace}/services")["items"]:
            if service["spec"].get("clusterIP") == "None":
                words[service["metadata"]["name"]] = "127.0.0.1"
                for port in service["spec"]["ports"]:
                    words[str(port["port"])] = str(self.port(namespace, port["port"]))
        return words

    def _value(self, pod: Json, entry: Json) -> str:
        source = entry.get("valueFrom") or {}
        if field := source.get("fieldRef"):
            return str(pod["metadata"][field["fieldPath"].removeprefix("metadata.")])
        if key := source.get("secretKeyRef"):
            path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/secrets/{key['name']}"
            return base64.b64decode(self._read(path)["data"][key["key"]]).decode()
        return str(entry["value"])


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """What DNS and kube-proxy would do to addresses in a text."""
    for name, address in names.items():
        text = text.replace(name, address)
    return text
