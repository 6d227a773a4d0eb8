"""Load: planned, run here or in the cluster, logged and collected."""
