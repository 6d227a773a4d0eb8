"""Messages of API server, scheduler and kubelet that show why a pod's containers do not run."""

import re

from vllm_rollout.judge.log_signs import Sign


def _sign(pattern: str, cause: str, resolution: str) -> Sign:
    return Sign(re.compile(pattern, re.IGNORECASE), cause, resolution)


REFUSALS = (
    _sign(
        r"exceeded quota",
        "the namespace's resource quota leaves no room",
        "Raise the ResourceQuota, scale something down in the namespace, or lower the requests.",
    ),
    _sign(
        r"failed quota",
        "",
        "State these resources in the values, or have a LimitRange give defaults.",
    ),
    _sign(
        r"(?:maximum|minimum) .+ usage per|max limit to request ratio|less than or equal to",
        "",
        "Ask for what the namespace's LimitRange allows (resources), or have it changed.",
    ),
    _sign(
        r"violates PodSecurity",
        "",
        "Set the pods' securityContext, or have pod-security.kubernetes.io/enforce changed.",
    ),
    _sign(
        r"(?:failed calling|failed to call) webhook",
        "",
        "The webhook that is named does not answer: bring it back (its Service, pods and "
        "certificate).",
    ),
    _sign(r"service ?account", "", "Check serviceAccount in the values, and create the account."),
    _sign(r"PriorityClass", "", "Check priorityClassName in the values, and create the class."),
)
"""How the API server refuses pods; without a cause, its own words are the cause."""

PULLS = (
    _sign(
        r"toomanyrequests|rate limit|\b429\b",
        "the registry limits the number of pulls",
        "Pull with an account (image.pullSecrets), or from a mirror.",
    ),
    _sign(
        r"no match for platform|no matching manifest for",
        "the image is for another processor architecture than the node's",
        "Use an image for the node's architecture, or choose nodes by kubernetes.io/arch.",
    ),
    _sign(
        r"unauthorized|denied|\b40[13]\b|no basic auth|authentication required"
        r"|authorization failed",
        "the registry does not give it to these credentials",
        "Check image.pullSecrets, and image.repository: registries say the same of an image that "
        "is not there.",
    ),
    _sign(
        r"not ?found|manifest unknown|NAME_UNKNOWN|\b404\b",
        "the registry does not have it",
        "Check image.repository, image.tag and image.digest, and image.pullSecrets if it is "
        "private.",
    ),
    _sign(
        r"no space left",
        "the node's disk is full",
        "Free space on the node, or choose nodes with a larger disk.",
    ),
    _sign(
        r"timeout|timed out|no such host|connection refused|network is unreachable|x509|tls:",
        "the node cannot reach the registry",
        "Check the node's network, proxy and certificates, or use a mirror.",
    ),
)

PLACES = (
    _sign(
        r"unbound immediate PersistentVolumeClaims|persistentvolumeclaim .*not found"
        r"|didn't find available persistent volumes",
        "its claim is not bound, or not there",
        "Look at the claim (kubectl describe pvc): its storage class, and a volume for it.",
    ),
    _sign(
        r"volume node affinity conflict",
        "its volume is in another zone, or on another node",
        "Let it run where the volume is, or load from one that every node reaches.",
    ),
    _sign(
        r"untolerated taint|had taint",
        "no node may run it: taints",
        "Compare tolerations with the nodes' taints; a node that is not ready has taints too.",
    ),
)

VOLUMES = (
    _sign(
        r"(?:secret|configmap) .*not found|references non-existent",
        "its Secret or ConfigMap, or a key of it, is not there",
        "Create what the message names in the release's namespace, or correct the name in the "
        "values.",
    ),
    _sign(
        r"Multi-Attach|already (?:used|exclusively attached)",
        "another pod on another node holds it",
        "Use a claim that several nodes may mount (ReadWriteMany, ReadOnlyMany), or one for "
        "each pod.",
    ),
    _sign(
        r"persistentvolumeclaim .*not found",
        "its claim is not there",
        "Create the claim, or correct its name in the values.",
    ),
)
