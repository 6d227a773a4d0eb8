"""`python -m vllm_rollout.simulator`: the command `simulate` by itself."""

import sys

import typer

from vllm_rollout.model.errors import RolloutError
from vllm_rollout.simulator.main import simulate

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(simulate)

if __name__ == "__main__":
    try:
        app(prog_name="python -m vllm_rollout.simulator")
    except RolloutError as error:
        sys.stderr.write(f"{error}\n{error.remedy}\n")
        sys.exit(error.exit_code)
