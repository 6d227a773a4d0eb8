"""Pods of one load run, made from the chart load-generator: created, observed, removed.

Helm renders the chart and the API makes its objects, so that nothing of a run is kept in Helm's
history. All of them are owned by the master's Job: with it they go, when it is deleted, or by
Kubernetes itself some minutes after its end.
"""

import getpass
import socket
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml

from vllm_rollout.http_client import HttpClient, HttpError
from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.load_pods import LoadTask, PodsSeen
from vllm_rollout.next_command import next_command
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi, NotFoundError
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.load_values import (
    LoadSettings,
    generator_name,
    generator_values,
)
from vllm_rollout.platform.kubernetes.pod_reader import list_instance
from vllm_rollout.platform.kubernetes.pods import Pod, replica_of
from vllm_rollout.platform.kubernetes.port_forward import PortForward
from vllm_rollout.resources import CHARTS

_STARTED_BY = "vllm-rollout/started-by"
_LOGS_PORT = 8089
_UNATTENDED_SECONDS = 10.0
_LOOK_SECONDS = 0.5
_REMOVED_SECONDS = 60.0
_ENDED = ("Succeeded", "Failed")
_MAX_BYTES = 1 << 16


class _Attended(msgspec.Struct):
    """The master's answer to `/attended`."""

    seconds_ago: float


class KubernetesLoadPods:
    """The pods that load one deployment. There is one such set at a time: its name is the lock."""

    def __init__(
        self, api: KubernetesApi, helm: Helm, deployment: Deployment, settings: LoadSettings
    ) -> None:
        self._api = api
        self._helm = helm
        self._deployment = deployment
        self._settings = settings
        self._namespace = settings.namespace
        self._name = generator_name(deployment.release)
        self._jobs = (f"{self._name}-worker", self._name)
        self._tunnel: PortForward | None = None
        self._ours = False
        self.start_seconds = settings.start_seconds

    def start(self, task: LoadTask) -> None:
        """Remove what a killed run left, then make the master, its workers and what they need.

        Raises:
            ConflictError: another run loads this deployment now.
            UsageError: the plan or the values cannot be used.
            UnreachableError, DeployError: the API server refuses something.
        """
        objects = self._rendered(task)
        self._clear()
        [master] = [each for each in objects if _is(each, "Job", self._name)]
        objects.remove(master)
        who = f"{getpass.getuser()} on {socket.gethostname()}"
        master["metadata"]["annotations"] = {_STARTED_BY: who}
        uid = self._create(master).metadata.uid
        self._ours = True
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": self._name, "uid": uid}
        for each in objects:
            each["metadata"]["ownerReferences"] = [owner]
            self._create(each)

    def url(self) -> str:
        """Return the URL of the master's logs, through the API server."""
        if self._tunnel is None:
            self._tunnel = PortForward(
                self._api,
                namespace=self._namespace,
                choose=self._master,
                destination=f"the load generator of {self._deployment}",
            )
        return self._tunnel.url

    def observe(self) -> PodsSeen:
        """Return the state of the pods; each that failed or waits is named, with the reason."""
        pods = list_instance(self._api, self._namespace, self._name)
        failed = [replica_of(pod) for pod in pods if pod.status.phase == "Failed"]
        waiting = [replica_of(pod) for pod in pods if pod.status.phase == "Pending"]
        return PodsSeen(
            master_ended=any(
                pod.status.phase in _ENDED for pod in pods if not self._is_worker(pod)
            ),
            failed="; ".join(map(_text, failed)),
            waiting="; ".join([*map(_text, waiting), *self._not_made()]),
        )

    def remove(self) -> None:
        """End and remove everything that `start` made; wait until it is gone."""
        if self._ours:
            self._remove()
            self._ours = False
        if self._tunnel is not None:
            self._tunnel.close()
            self._tunnel = None

    def _rendered(self, task: LoadTask) -> list[dict[str, Any]]:
        values = generator_values(self._api, self._settings, task)
        with tempfile.TemporaryDirectory(prefix="vllm-rollout-") as folder:
            file = Path(folder) / "values.yaml"
            file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
            files = [self._settings.values, file] if self._settings.values else [file]
            return self._helm.template(
                self._name, CHARTS / "load-generator", namespace=self._namespace, values=files
            )

    def _create(self, body: dict[str, Any]) -> Any:
        create = {
            "Job": self._api.batch.create_namespaced_job,
            "Service": self._api.core.create_namespaced_service,
            "ConfigMap": self._api.core.create_namespaced_config_map,
            "NetworkPolicy": self._api.networking.create_namespaced_network_policy,
        }[body["kind"]]
        what = f"{body['kind'].lower()} {body['metadata']['name']} in namespace {self._namespace}"
        with self._api.doing("create", what):
            return create(self._namespace, body, _request_timeout=TIMEOUT_SECONDS)

    def _clear(self) -> None:
        """Remove what a killed run left; leave alone what somebody still attends."""
        job = self._job(self._name)
        if job is None:
            return
        owner = (job.metadata.annotations or {}).get(_STARTED_BY, "somebody")
        age = datetime.now(UTC) - job.metadata.creation_timestamp
        ended = job.metadata.deletion_timestamp or any(
            each.type in ("Complete", "Failed") and each.status == "True"
            for each in job.status.conditions or ()
        )
        if not ended and not self._left(age.total_seconds()):
            raise ConflictError(
                f"{owner} has loaded {self._deployment} for {age.total_seconds():.0f} s, by the "
                f"Job {self._name} in namespace {self._namespace}",
                remedy="Two loads on one deployment measure neither: wait until it has ended. If "
                "nobody uses it: "
                + next_command("kubectl", "delete", "job", self._name, "-n", self._namespace),
            )
        self._remove()

    def _left(self, age_seconds: float) -> bool:
        """Return True if nobody asks the running master for its logs any more."""
        until = time.monotonic() + _UNATTENDED_SECONDS + 2
        client = HttpClient(max_bytes=_MAX_BYTES)
        try:
            while time.monotonic() < until:
                try:
                    answer = client.get(f"{self.url()}/attended", timeout_seconds=10)
                    if answer.json(_Attended).seconds_ago > _UNATTENDED_SECONDS:
                        return True
                except HttpError:
                    # Its pods may still be about to start, for somebody who waits for them.
                    return age_seconds > self._settings.start_seconds
                time.sleep(_LOOK_SECONDS)
            return False
        finally:
            client.close()
            if self._tunnel is not None:
                self._tunnel.close()
                self._tunnel = None

    def _remove(self) -> None:
        for name in self._jobs:
            try:
                with self._api.doing("delete", f"jobs {name} in namespace {self._namespace}"):
                    self._api.batch.delete_namespaced_job(
                        name,
                        self._namespace,
                        propagation_policy="Foreground",
                        _request_timeout=TIMEOUT_SECONDS,
                    )
            except NotFoundError:
                continue
        until = time.monotonic() + _REMOVED_SECONDS
        while any(self._job(name) for name in self._jobs):
            if time.monotonic() > until:
                raise UnreachableError(
                    f"the Jobs {' and '.join(self._jobs)} were deleted and are still there after "
                    f"{_REMOVED_SECONDS:.0f} s",
                    address=self._api.address,
                    remedy="Are the nodes of their pods lost? No load is sent for longer than the "
                    "plan says, and Kubernetes removes them when it can.",
                )
            time.sleep(_LOOK_SECONDS)

    def _job(self, name: str) -> Any | None:
        try:
            with self._api.doing("get", f"jobs {name} in namespace {self._namespace}"):
                return self._api.batch.read_namespaced_job(
                    name, self._namespace, _request_timeout=TIMEOUT_SECONDS
                )
        except NotFoundError:
            return None

    def _not_made(self) -> list[str]:
        """Return why pods could not even be made, as a quota would have it."""
        with self._api.doing("list", f"events in namespace {self._namespace}"):
            found = self._api.core.list_namespaced_event(
                self._namespace,
                field_selector="involvedObject.kind=Job,reason=FailedCreate",
                _request_timeout=TIMEOUT_SECONDS,
            )
        own = [each for each in found.items if each.involved_object.name in self._jobs]
        return sorted({f"{each.involved_object.name}: {each.message}" for each in own})

    def _master(self) -> tuple[str, int]:
        for pod in list_instance(self._api, self._namespace, self._name):
            if not self._is_worker(pod) and pod.status.phase == "Running":
                return pod.metadata.name, _LOGS_PORT
        raise UnreachableError(
            f"no master of {self._name} runs in namespace {self._namespace}",
            address=self._api.address,
        )

    def _is_worker(self, pod: Pod) -> bool:
        return pod.metadata.name.startswith(f"{self._name}-worker-")


def _is(each: dict[str, Any], kind: str, name: str) -> bool:
    return bool(each["kind"] == kind and each["metadata"]["name"] == name)


def _text(replica: Replica) -> str:
    why = ": ".join(filter(None, [replica.reason, replica.message]))
    return f"pod {replica.name} is {replica.phase}" + (f" ({why})" if why else "")
