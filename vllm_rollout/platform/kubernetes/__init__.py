"""The `kubernetes` platform: a release is a Helm release, a replica is a pod."""

from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform

__all__ = ["KubernetesPlatform"]
