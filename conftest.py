"""pytest's door: registers the plugin, nothing else."""

pytest_plugins = ["vllm_rollout.plugin"]
