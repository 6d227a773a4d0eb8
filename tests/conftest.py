"""The real parts that tests of several folders use."""

from cluster.fixtures import cluster, namespace, wire
from cluster.required import helm_binary

__all__ = ["cluster", "helm_binary", "namespace", "wire"]
