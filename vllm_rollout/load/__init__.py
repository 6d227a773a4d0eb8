"""How load is planned, run here or in the cluster, logged and collected."""
