"""The real Helm, for the tests that run it."""

from cluster.required import helm_binary

__all__ = ["helm_binary"]
