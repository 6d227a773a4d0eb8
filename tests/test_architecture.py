"""ARCHITECTURE.md and CONTRIBUTING.md name what is there, and the layers that are checked."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vllm_rollout"
_NAMED = re.compile(r"`([\w./-]+(?:/|\.(?:py|yaml|toml|md)))`|\]\(([^)#:]+)\)")


def named_files(document: str) -> set[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return {quoted or linked for quoted, linked in _NAMED.findall(text)}


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_each_file_that_is_named_exists(document: str) -> None:
    named = named_files(document) - {"rollout.yaml"}
    assert len(named) > 10
    missing = [n for n in named if not ((ROOT / n).exists() or (PACKAGE / n).exists())]
    assert sorted(missing) == []


def test_the_picture_has_the_layers_that_the_import_contract_checks() -> None:
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = configured["tool"]["importlinter"]["contracts"]
    (layers,) = [each["layers"] for each in contracts if each["type"] == "layers"]
    picture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```")[1]
    drawn = [re.split(r" {2,}", line)[0] for line in picture.strip().splitlines()]
    assert drawn == [layer.replace("vllm_rollout.", "") for layer in layers]
