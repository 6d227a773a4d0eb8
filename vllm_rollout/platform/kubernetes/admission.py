"""Admission: what the API server answers, in a dry run, to objects and to the pods made of them.

No Helm submits its objects in a dry run of its own: it renders with the cluster's help and compares
with what is there. So they are sent here, by the requests that Helm would send.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

from vllm_rollout.model.deployment import Deployment, canonical_digest
from vllm_rollout.model.errors import DeployError
from vllm_rollout.model.preflight_facts import Admission, Refusal
from vllm_rollout.model.text import redact
from vllm_rollout.platform.kubernetes.api import KubernetesApi, message_of
from vllm_rollout.platform.kubernetes.command import webhook_away, webhook_remedy
from vllm_rollout.platform.kubernetes.templates import Json, hook_of, one_by_one

_HOOKS = re.compile(r"\b(pre|post)-(install|upgrade)\b")
NO_RIGHT = re.compile(r"cannot \w+ resource")
_UNASKED = re.compile(r"does not support dry run|duplicate entries for key")
"""Of a webhook with side effects; and of server-side apply, which not every Helm 4 release uses."""
_OVER_QUOTA = "exceeded quota"
_POD_KINDS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job")
_MADE_BEFORE_PODS = {
    "serviceAccountName": "ServiceAccount",
    "priorityClassName": "PriorityClass",
    "runtimeClassName": "RuntimeClass",
}
_JSON = "application/json"
_MERGE = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"
_APPLY = "application/apply-patch+yaml"


def admission(
    api: KubernetesApi,
    objects: Iterable[Json],
    namespace: str,
    *,
    applies: bool,
    patches: Sequence[Json] = (),
) -> Admission:
    """The answers to each of the objects once, hooks included, and to a pod of each template.

    `applies` is whether Helm applies them server-side, as Helm 4 does; `patches` are parts of
    objects that are there. Nothing is changed.

    Raises:
        UnreachableError: no answer, or none to these credentials.
    """
    asked = _Asked(api, namespace)
    objects = [each for each in one_by_one(objects) if is_made(each)]
    own = [_APPLY] if applies else [_STRATEGIC, _MERGE]
    for each in objects:
        # A hook that is left from before is removed before it is created.
        asked.object(each, own if hook_of(each) is None else [])
    for each in patches:
        asked.object(each, [_MERGE])
    made = {(str(each.get("kind")), str(each["metadata"].get("name"))) for each in objects}
    for owner, pod in _pods(objects):
        asked.pod(owner, pod, made)
    return Admission(asked=len(asked.seen), refusals=tuple(asked.refusals))


class _Asked:
    """The objects that were asked for, and all answers that are no consent."""

    def __init__(self, api: KubernetesApi, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self.seen: set[str] = set()
        self.refusals: list[Refusal] = []

    def object(self, each: Json, kinds: Sequence[str]) -> None:
        """Ask to change the object by the first of these kinds of patch that it knows, or to create
        it where it is not there."""
        if self._is_known(each):
            return
        what = f"{each['kind']} {each['metadata'].get('name') or each['metadata']['generateName']}"
        path = self._api.paths.get((each["apiVersion"], each["kind"]))
        if path is None:
            unknown = f"the cluster knows no {each['kind']} of {each['apiVersion']}"
            self.refusals.append(Refusal(what=what, reason=unknown, certain=False))
            return
        path = path.format(each["metadata"].get("namespace", self._namespace))
        status, text = int(HTTPStatus.NOT_FOUND), ""
        if name := each["metadata"].get("name"):
            for kind in kinds:
                status, text = self._send("PATCH", f"{path}/{name}", each, kind)
                if status != HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
                    break
        if status == HTTPStatus.NOT_FOUND and kinds != [_APPLY]:
            status, text = self._send("POST", path, each, _JSON)
        self._note(what, each, status, text)

    def pod(self, owner: str, pod: Json, made: set[tuple[str, str]]) -> None:
        """Ask to create a pod as its workload's controller would.

        A quota that is full is not its fault: the pods that it takes the place of are in it.
        """
        if self._is_known(pod):
            return
        path = self._api.paths["v1", "Pod"].format(
            pod["metadata"].get("namespace", self._namespace)
        )
        status, text = self._send("POST", path, pod, _JSON)
        later = [k for k, kind in _MADE_BEFORE_PODS.items() if (kind, pod["spec"].get(k)) in made]
        if later and status >= HTTPStatus.BAD_REQUEST:  # they may not be there yet
            spec = {k: v for k, v in pod["spec"].items() if k not in (*later, "serviceAccount")}
            status, text = self._send("POST", path, {**pod, "spec": spec}, _JSON)
        if status != HTTPStatus.FORBIDDEN or _OVER_QUOTA not in text:
            self._note(f"a pod of {owner}", pod, status, text)

    def _is_known(self, each: Json) -> bool:
        """Return True for what differs in its number of replicas alone from one asked before."""
        spec = each.get("spec")
        plain = (
            {k: v for k, v in spec.items() if k != "replicas"} if isinstance(spec, dict) else spec
        )
        digest = canonical_digest({**each, "spec": plain})
        known = digest in self.seen
        self.seen.add(digest)
        return known

    def _send(self, method: str, path: str, each: Json, kind: str) -> tuple[int, str]:
        query = [("fieldManager", "helm"), ("dryRun", "All")]
        if kind == _APPLY:
            query.append(("force", "true"))
        with self._api.doing(method.lower(), path):
            return self._api.ask(
                method,
                path,
                query_params=query,
                header_params={"Content-Type": kind, "Accept": _JSON},
                body=json.dumps(each) if kind == _APPLY else each,
            )

    def _note(self, what: str, each: Json, status: int, text: str) -> None:
        # Conflicts, also with a hook that is left from before, are not for admission to decide.
        if status < HTTPStatus.BAD_REQUEST or status == HTTPStatus.CONFLICT:
            return
        reason = redact(message_of(text), _content(each))
        webhook = webhook_away(reason)
        busy = status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if status == HTTPStatus.UNAUTHORIZED or (busy and not webhook):
            raise self._api.refusal(status, text, "apply", what)
        barred = status == HTTPStatus.FORBIDDEN and NO_RIGHT.search(reason)
        certain = not (webhook or barred or _UNASKED.search(reason))
        self.refusals.append(Refusal(what=what, reason=reason, certain=certain, webhook=webhook))


def marked_by_helm(objects: Iterable[Json], deployment: Deployment) -> list[Json]:
    """The objects, each as Helm writes one of the deployment's release: with its name, by which
    admission may know it. Hooks have no such mark."""
    label = {"app.kubernetes.io/managed-by": "Helm"}
    release = {
        "meta.helm.sh/release-name": deployment.release,
        "meta.helm.sh/release-namespace": deployment.namespace,
    }

    def marked(each: Json) -> Json:
        about = each["metadata"]
        labels = {**(about.get("labels") or {}), **label}
        annotations = {**(about.get("annotations") or {}), **release}
        return {**each, "metadata": {**about, "labels": labels, "annotations": annotations}}

    return [each if hook_of(each) is not None else marked(each) for each in one_by_one(objects)]


def is_made(each: Json) -> bool:
    """Return True for an object of the release, and for a hook of an install or upgrade."""
    hooks = hook_of(each)
    return hooks is None or bool(_HOOKS.search(hooks))


def _pods(objects: Iterable[Json]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a pod of each workload that runs any, and the workload's name."""
    for each in objects:
        spec = each.get("spec") or {}
        if each.get("kind") not in _POD_KINDS or spec.get("replicas", 1) == 0:
            continue
        about, template = each["metadata"], spec["template"]
        kept = {k: v for k, v in (template.get("metadata") or {}).items() if k != "name"}
        place = {"namespace": about["namespace"]} if "namespace" in about else {}
        claims = [
            {"name": name, "persistentVolumeClaim": {"claimName": f"{name}-{about.get('name')}-0"}}
            for name in (c["metadata"]["name"] for c in spec.get("volumeClaimTemplates") or ())
        ]
        volumes = [*(template["spec"].get("volumes") or ()), *claims]
        yield (
            f"{each['kind']} {about.get('name')}",
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {**kept, **place, "generateName": f"{about.get('name')}-"},
                "spec": {**template["spec"], **({"volumes": volumes} if volumes else {})},
            },
        )


def _content(each: Json) -> list[str]:
    """The content of a Secret, which the API server may repeat in a refusal."""
    if each.get("kind") != "Secret":
        return []
    found = [str(text) for text in (each.get("stringData") or {}).values()]
    for text in (each.get("data") or {}).values():
        found.append(str(text))
        try:
            found.append(base64.b64decode(str(text)).decode())
        except (binascii.Error, UnicodeDecodeError):
            continue
    return found


def refuse_inadmissible(deployment: Deployment, answers: Admission) -> None:
    """Return if the API server refuses none of the objects, by its answers to them in a dry run.

    What it cannot be asked is left to Helm.

    Raises:
        DeployError: it refuses some; Helm would fail after it had changed others.
    """
    found = [r for r in answers.refusals if r.certain or r.webhook]
    if found:
        away = next((r.webhook for r in found if r.webhook), "")
        raise DeployError(
            f"{deployment} is not changed, as the API server refuses {'; '.join(map(str, found))}",
            remedy=webhook_remedy(away)
            if away
            else "Correct the chart, its values or the policy that is named.",
        )
