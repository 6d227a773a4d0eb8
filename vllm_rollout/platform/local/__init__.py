"""The embedded platform: one machine, no cluster. Releases are processes behind a router."""

from vllm_rollout.platform.local.platform import LocalPlatform

__all__ = ["LocalPlatform"]
