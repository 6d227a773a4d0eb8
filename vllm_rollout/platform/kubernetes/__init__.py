"""The `kubernetes` platform: a release is a Helm release, a replica is a pod."""

from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.platform.kubernetes.value_files import StartUp, StartUpOf

__all__ = ["KubernetesPlatform", "StartUp", "StartUpOf"]
