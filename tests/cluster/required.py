"""What tests do about a real part that is missing: skip, loudly, or fail where all are required."""

import os
import shutil
from typing import NoReturn

import pytest
from cluster.build_tools import ToolMissingError, tool


def required_tool(name: str) -> str:
    """Path of the binary `name`; skips the test without it, or fails it where
    `VLLM_ROLLOUT_REQUIRE=all`.
    """
    try:
        return str(tool(name))
    except ToolMissingError as error:
        missing(str(error))


def debian_tool(name: str) -> str:
    """Path of a program that Debian has under the name of its package; without it as above."""
    return shutil.which(name) or missing(f"{name} is missing: apt-get install {name}")


def missing(problem: str) -> NoReturn:
    """Skip the test, or fail it where `VLLM_ROLLOUT_REQUIRE=all`."""
    if os.environ.get("VLLM_ROLLOUT_REQUIRE") == "all":
        pytest.fail(problem, pytrace=False)
    pytest.skip(problem)


each_helm = pytest.mark.parametrize("helm_binary", ["helm4", "helm3"], indirect=True)
"""For a test of what the two Helms do differently: `make test-all` runs it with both."""


@pytest.fixture(params=["helm4", pytest.param("helm3", marks=pytest.mark.exhaustive)])
def helm_binary(request: pytest.FixtureRequest) -> str:
    """The real Helm command line: Helm 4, and Helm 3 where everything is run."""
    return required_tool(request.param)
