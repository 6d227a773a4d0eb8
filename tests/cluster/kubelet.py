"""A scheduler and a kubelet for tests: they bind pods to nodes and report what becomes of them.

Pods are really in the API server, with real conditions, container states, events and logs; only
no container runs. Where a test asks, a simulator answers for a pod on loopback.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from cluster.behaviour import CRASH_BACK_OFF, HEALTHY, Behaviour
from cluster.control_plane import ControlPlane
from cluster.existing import ExistingControlPlane
from cluster.kubelet_server import kubelet_server
from cluster.pod_process import PodProcesses
from cluster.scheduling import choose_node

from vllm_rollout.simulator.running import RunningSimulator

Pod = Mapping[str, Any]
Choose = Callable[[Pod], Behaviour]

_INTERVAL_SECONDS = 0.1
_HEARTBEAT_SECONDS = 10.0


class Kubelet:
    """Looks at all pods every tenth of a second, in a thread, until `close`.

    Only the pods of the namespaces that it adopted are its own, and only the nodes. `behave` says
    how the pods of a namespace behave; those of others are healthy.
    """

    def __init__(self, control_plane: ControlPlane | ExistingControlPlane, pem: Path) -> None:
        self._namespaces: set[str] = set()
        self._leaving: set[str] = set()
        self._nodes: dict[str, Any] = {}
        self._beat = time.monotonic()
        self._behaviours: dict[str, Choose] = {}
        self._simulators: dict[str, RunningSimulator] = {}
        self._releases: dict[str, tuple[str, str]] = {}
        self._reported: dict[str, str] = {}
        self._logs: dict[tuple[str, str], Behaviour] = {}
        self._stop = threading.Event()
        self._stack = ExitStack()
        self._api = self._stack.enter_context(control_plane.client("admin"))
        self.processes = PodProcesses(control_plane.folder / "pods", self._read)
        self.failures: list[str] = []
        self.port = self._stack.enter_context(kubelet_server(self._logs, self._url, pem))
        self._thread = threading.Thread(target=self._run, daemon=True, name="kubelet")
        self._thread.start()

    def adopt(self, namespace: str) -> None:
        """Look after the pods of `namespace` from now on."""
        self._namespaces.add(namespace)

    def leave(self, namespace: str) -> None:
        """Look after the pods of `namespace`, which is being deleted, until the last is gone."""
        self._leaving.add(namespace)

    def join(self, node: str, conditions: Any) -> None:
        """Keep the node alive with these conditions, as its kubelet would."""
        self._nodes[node] = conditions

    def behave(self, namespace: str, choose: Choose | Behaviour) -> None:
        """How the pods of `namespace` behave from now on; those that run already change too."""
        self._behaviours[namespace] = (
            (lambda _pod: choose) if isinstance(choose, Behaviour) else choose
        )

    def simulator(self, namespace: str, pod: str) -> RunningSimulator | None:
        """What answers for a ready pod; None if nothing does."""
        return self._simulators.get(f"{namespace}/{pod}")

    def serving(self, namespace: str, release: str) -> list[RunningSimulator]:
        """What answers for the ready pods of a release; it may know of one a moment early."""
        running = list(self._simulators.items())  # another thread starts and ends them
        return [each for pod, each in running if self._releases.get(pod) == (namespace, release)]

    def close(self) -> None:
        """Stop, and end every simulator."""
        self._stop.set()
        self._thread.join()
        for simulator in self._simulators.values():
            simulator.close()
        self.processes.close()
        self._stack.close()

    def _url(self, namespace: str, pod: str, port: int) -> str:
        simulator = self.simulator(namespace, pod)
        if simulator is not None:
            return simulator.url
        behaviour = self._logs.get((namespace, pod), HEALTHY)
        runs = behaviour.names is not None and behaviour.ready
        return f"http://127.0.0.1:{self.processes.port(namespace, port)}" if runs else ""

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            # The API server is killed and restarted by some tests.
            with suppress(httpx.HTTPError):
                self._look()
                if time.monotonic() - self._beat > _HEARTBEAT_SECONDS:
                    self._beat = time.monotonic()
                    self._tell_alive()

    def _tell_alive(self) -> None:
        for node, conditions in list(self._nodes.items()):  # another thread lets nodes join
            told = [{**each, "lastHeartbeatTime": _now()} for each in conditions]
            body = {"status": {"conditions": told}}
            self._send("PATCH", f"/api/v1/nodes/{node}/status", body)

    def _look(self) -> None:
        if not self._namespaces:  # as between the tests that have one
            return
        leaving = set(self._leaving)
        everyone = self._get("/api/v1/pods")
        pods = [pod for pod in everyone if pod["metadata"]["namespace"] in self._namespaces]
        nodes: list[Pod] | None = None
        for pod in pods:
            if "deletionTimestamp" in pod["metadata"]:
                self._remove(pod)
            elif pod["spec"].get("nodeName"):
                self._realise(pod)
            else:
                nodes = nodes or self._own_nodes()
                self._schedule(pod, nodes, everyone)
        alive = {_key(pod) for pod in pods}
        for key in [key for key in self._simulators if key not in alive]:
            self._simulators.pop(key).close()
        left = leaving - {pod["metadata"]["namespace"] for pod in pods}
        self._namespaces.difference_update(left)
        self._leaving.difference_update(left)

    def _own_nodes(self) -> list[Pod]:
        return [n for n in self._get("/api/v1/nodes") if n["metadata"]["name"] in self._nodes]

    def _schedule(self, pod: Pod, nodes: list[Pod], pods: list[Pod]) -> None:
        node, why = choose_node(pod, nodes, pods)
        if node:
            body = {"metadata": {"name": pod["metadata"]["name"]}, "target": {"name": node}}
            self._send("POST", f"{_path(pod)}/binding", body)
            # So that the next pod of this round sees it.
            pod["spec"]["nodeName"] = node
            return
        if self._reported.get(_key(pod)) != why:
            self._reported[_key(pod)] = why
            condition = _condition("PodScheduled", "False", "Unschedulable", why)
            self._send("PATCH", f"{_path(pod)}/status", {"status": {"conditions": [condition]}})
            self._event(pod, "FailedScheduling", why)

    def _realise(self, pod: Pod) -> None:
        metadata = pod["metadata"]
        choose = self._behaviours.get(metadata["namespace"])
        behaviour = HEALTHY if choose is None else choose(pod)
        if behaviour.names is not None:
            behaviour = self.processes.behaviour(pod, behaviour)
        # A StatefulSet's pods have the names of those before them.
        state = f"{metadata['uid']} {behaviour!r}"
        if self._reported.get(_key(pod)) == state:
            return
        self._logs[metadata["namespace"], metadata["name"]] = behaviour
        if behaviour.ready and behaviour.serves is not None and _key(pod) not in self._simulators:
            simulator = RunningSimulator(model=_served_model(pod), **behaviour.serves)
            simulator.start()
            self._releases[_key(pod)] = _served_by(pod)
            self._simulators[_key(pod)] = simulator
        if not behaviour.ready and _key(pod) in self._simulators:
            self._simulators.pop(_key(pod)).close()
        answer = self._send("PATCH", f"{_path(pod)}/status", {"status": status(pod, behaviour)})
        if answer.status_code == httpx.codes.OK:
            self._reported[_key(pod)] = state
            for reason, message in events(pod, behaviour):
                self._event(pod, reason, message)

    def _remove(self, pod: Pod) -> None:
        simulator = self._simulators.pop(_key(pod), None)
        if simulator is not None:
            simulator.close()
        self.processes.end(pod)
        self._send("DELETE", _path(pod), {"gracePeriodSeconds": 0})

    def _event(self, pod: Pod, reason: str, message: str) -> None:
        metadata = pod["metadata"]
        involved = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        }
        scheduler = reason == "FailedScheduling"
        body = {
            "metadata": {
                "generateName": f"{metadata['name']}.",
                "namespace": metadata["namespace"],
            },
            "involvedObject": involved,
            "reason": reason,
            "message": message,
            "type": "Normal" if reason in ("Pulling", "Killing") else "Warning",
            "source": {"component": "default-scheduler" if scheduler else "kubelet"},
            "firstTimestamp": _now(),
            "lastTimestamp": _now(),
            "count": 1,
        }
        self._send("POST", f"/api/v1/namespaces/{metadata['namespace']}/events", body)

    def _get(self, path: str) -> list[Any]:
        items: list[Any] = self._read(path)["items"]
        return items

    def _read(self, path: str) -> Any:
        answer = self._api.get(path)
        answer.raise_for_status()
        return answer.json()

    def _send(self, method: str, path: str, body: object) -> httpx.Response:
        merge = {"Content-Type": "application/strategic-merge-patch+json"}
        headers = merge if method == "PATCH" else {"Content-Type": "application/json"}
        answer = self._api.request(method, path, content=json.dumps(body), headers=headers)
        # A pod may be deleted, and its namespace be closing, between two looks.
        if answer.is_error and answer.status_code not in (403, 404, 409):
            self.failures.append(f"{method} {path}: {answer.text}")
        return answer


def status(pod: Pod, behaviour: Behaviour) -> dict[str, Any]:
    """The pod's status as a kubelet reports it."""
    container = pod["spec"]["containers"][0]
    one_off = pod["spec"].get("restartPolicy") == "Never" and behaviour.names is None
    ready = behaviour.ready and not one_off
    started = {"startedAt": _now()}
    state: dict[str, Any] = {"running": started}
    last: dict[str, Any] = {}
    if behaviour.waiting:
        state = {"waiting": {"reason": behaviour.waiting, "message": behaviour.message}}
    elif behaviour.exit_code is not None:
        message = f"{CRASH_BACK_OFF}={container['name']} pod={pod['metadata']['name']}"
        state = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
        last = {"terminated": _ended(behaviour.exit_code, behaviour.ended)}
    elif behaviour.exited is not None:
        state = {
            "terminated": _ended(behaviour.exited, "Error" if behaviour.exited else "Completed")
        }
    elif one_off:
        state = {"terminated": _ended(0, "Completed")}
    elif behaviour.restarts:
        last = {"terminated": _ended(137, "Error")}
    reported = {
        "name": container["name"],
        "image": container["image"],
        "imageID": _image_id(container["image"], behaviour.tagged),
        "ready": ready,
        "started": behaviour.ready or behaviour.probe == "Readiness",
        "restartCount": behaviour.restarts,
        "state": state,
        "lastState": last,
    }
    phase = "Pending" if behaviour.waiting else "Running"
    if one_off and behaviour.ready:
        phase = "Succeeded"
    if behaviour.exited is not None:
        phase = "Failed" if behaviour.exited else "Succeeded"
    unready = ("ContainersNotReady", f"containers with unready status: [{container['name']}]")
    detail = ("", "") if ready else unready
    number = int(pod["metadata"]["uid"].replace("-", "")[:4], 16)
    return {
        "phase": phase,
        "startTime": _now(),
        "hostIP": "192.0.2.1",
        # Addresses for documentation: the API server lets no endpoint be on loopback.
        "podIP": f"203.0.113.{number % 250 + 1}",
        "conditions": [
            _condition("PodScheduled", "True"),
            _condition("Initialized", "True"),
            _condition("ContainersReady", str(ready), *detail),
            _condition("Ready", str(ready), *detail),
        ],
        "containerStatuses": [reported],
    }


def _image_id(image: str, tagged: str) -> str:
    """What a runtime pulled for `image`: its digest, or what its tag stands for."""
    name, _, digest = image.partition("@")
    return f"{name}@{digest or 'sha256:' + hashlib.sha256((name + tagged).encode()).hexdigest()}"


def events(pod: Pod, behaviour: Behaviour) -> Iterator[tuple[str, str]]:
    """What a kubelet tells of such a pod: reason and message."""
    container = pod["spec"]["containers"][0]
    if behaviour.waiting.startswith(("Image", "ErrImage")):
        yield "Pulling", f'Pulling image "{container["image"]}"'
        yield "Failed", f'Failed to pull image "{container["image"]}": {behaviour.message}'
    elif behaviour.exit_code is not None:
        yield "BackOff", f"{CRASH_BACK_OFF} {container['name']} in pod {pod['metadata']['name']}"
    elif behaviour.probe:
        refused = 'Get "http://203.0.113.1:8000/health": dial tcp: connect: connection refused'
        yield "Unhealthy", f"{behaviour.probe} probe failed: {refused}"
        if behaviour.probe == "Startup":
            yield (
                "Killing",
                f"Container {container['name']} failed startup probe, will be restarted",
            )


def _ended(exit_code: int, reason: str) -> dict[str, Any]:
    return {"exitCode": exit_code, "reason": reason, "startedAt": _now(), "finishedAt": _now()}


def _condition(kind: str, holds: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {
        "type": kind,
        "status": holds,
        "reason": reason,
        "message": message,
        "lastTransitionTime": _now(),
    }


def _served_model(pod: Pod) -> str:
    """The name after `--served-model-name`."""
    container = pod["spec"]["containers"][0]
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--served-model-name":
            return str(following)
        if word.startswith("--served-model-name="):
            return str(word.partition("=")[2])
    raise ValueError(f"pod {pod['metadata']['name']} names no model: {words}")


def _served_by(pod: Pod) -> tuple[str, str]:
    """Namespace and release."""
    metadata = pod["metadata"]
    return metadata["namespace"], (metadata.get("labels") or {}).get(
        "app.kubernetes.io/instance", ""
    )


def _key(pod: Pod) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _path(pod: Pod) -> str:
    metadata = pod["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
