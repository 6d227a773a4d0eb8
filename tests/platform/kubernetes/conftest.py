"""Fixtures of the tests against real Helm and a real API server."""

from cluster.fixtures import cluster, namespace
from cluster.required import helm_binary

__all__ = ["cluster", "helm_binary", "namespace"]
