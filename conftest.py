"""pytest's door: registers the plugin, nothing else."""

pytest_plugins = ["vllm_rollout.pytest_plugin"]
