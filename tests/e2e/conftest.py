"""Fixtures of the whole rollouts on a real cluster."""

from cluster.fixtures import cluster, namespace
from cluster.required import helm_binary

__all__ = ["cluster", "helm_binary", "namespace"]
