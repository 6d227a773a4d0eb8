"""Base images and other people's actions are named by their content."""

import re
from pathlib import Path

import yaml

from vllm_rollout.resources import CHARTS

ROOT = Path(__file__).parents[2]
IMAGE = re.compile(r"\S+@sha256:[0-9a-f]{64}")


def test_base_images_and_ci_actions_cannot_move() -> None:
    froms = [
        line.removeprefix("FROM ")
        for file in CHARTS.glob("*/Dockerfile")
        for line in file.read_text().splitlines()
        if line.startswith("FROM ")
    ]
    froms.append(
        yaml.safe_load((CHARTS / "vllm-deployment/values.yaml").read_text())["test"]["image"]
    )
    assert len(froms) == len({*CHARTS.glob("*/Dockerfile")}) + 1
    assert [each for each in froms if not IMAGE.fullmatch(each)] == []
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("ci/**/*.yml")]
    used = re.findall(r"uses: (\S+)", "".join(page.read_text() for page in pages))
    assert used
    by_commit = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40}|acme/vllm-rollout/ci/github@COMMIT")
    assert [each for each in used if not by_commit.fullmatch(each)] == []
