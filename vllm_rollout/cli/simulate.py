"""`vllm-rollout simulate`."""

from vllm_rollout.cli import options
from vllm_rollout.simulator.main import simulate

simulate_command = options.errors_shown()(simulate)
