"""The real Helm, for every test of a chart."""

from cluster.required import helm_binary

__all__ = ["helm_binary"]
