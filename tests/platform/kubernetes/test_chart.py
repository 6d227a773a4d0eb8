"""The chart folder: its digest, the overlays that are no part of it, and the build it makes."""

import shutil
from pathlib import Path

import pytest

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.platform.kubernetes.build import check_same
from vllm_rollout.platform.kubernetes.chart import (
    chart_digest,
    load_chart,
    make_build,
    merged,
    overlay,
)
from vllm_rollout.resources import CHARTS

STAGING = Deployment("llama-2-7b", "staging")


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    """A copy of the chart that may be changed."""
    return Path(shutil.copytree(CHARTS / "vllm-deployment", tmp_path / "chart"))


@pytest.mark.parametrize("changed", ["values.yaml", "templates/_pod.tpl", "templates/new.yaml"])
def test_any_change_of_the_chart_changes_its_digest(chart: Path, changed: str) -> None:
    before = chart_digest(chart)
    with (chart / changed).open("a") as file:
        file.write("\n# changed\n")

    assert chart_digest(chart) != before


def test_a_renamed_template_changes_the_digest(chart: Path) -> None:
    before = chart_digest(chart)
    (chart / "templates" / "service.yaml").rename(chart / "templates" / "other.yaml")

    assert chart_digest(chart) != before


@pytest.mark.parametrize(
    "changed", ["values-production.yaml", ".DS_Store", "templates/.a.yaml.swp"]
)
def test_overlays_and_hidden_files_are_no_part_of_the_build(chart: Path, changed: str) -> None:
    before = chart_digest(chart)
    with (chart / changed).open("a") as file:
        file.write("\n# changed\n")

    assert chart_digest(chart) == before


def test_the_shipped_chart_can_be_ramped() -> None:
    assert load_chart(CHARTS / "vllm-deployment").ramps


def test_a_folder_without_a_chart_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Chart\.yaml"):
        load_chart(tmp_path)


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "just words"])
def test_a_values_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "values-staging.yaml").write_text(text)

    with pytest.raises(UsageError, match=r"values-staging\.yaml"):
        overlay(tmp_path, "staging")


def test_a_missing_overlay_never_means_the_defaults(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"values-production\.yaml") as caught:
        overlay(tmp_path, "production")

    assert "may be empty" in caught.value.remedy


@pytest.mark.parametrize("key", ["image", "model", "canary", "rollout"])
def test_an_overlay_may_not_change_what_was_gated(tmp_path: Path, key: str) -> None:
    (tmp_path / "values-production.yaml").write_text(f"replicaCount: 4\n{key}: {{tag: other}}\n")

    with pytest.raises(UsageError, match=f"sets {key}"):
        overlay(tmp_path, "production")


def test_values_lie_over_one_another_as_helm_lays_them() -> None:
    below = {"a": {"b": 1, "c": 2}, "list": [1, 2], "gone": 1, "text": "x"}
    above = {"a": {"c": 3}, "list": [4], "gone": None, "text": {"now": "a mapping"}}

    assert merged(below, above) == {
        "a": {"b": 1, "c": 3},
        "list": [4],
        "text": {"now": "a mapping"},
    }


def test_a_build_is_its_chart_values_image_and_model(chart: Path) -> None:
    digest = "sha256:" + "d" * 64
    build = make_build(chart, STAGING, {"image": {"digest": digest}, "model": {"revision": "0a1b"}})

    assert build.chart_digest == chart_digest(chart)
    assert (build.image_digest, build.model_revision) == (digest, "0a1b")
    plain = make_build(chart, STAGING, {})
    assert (plain.image_digest, plain.model_revision) == (None, None)
    assert plain.values_digest != build.values_digest


def test_values_that_serve_another_model_are_refused(chart: Path) -> None:
    with pytest.raises(UsageError, match="llama-2-7b"):
        make_build(chart, Deployment("mistral-7b", "staging"), {})


def test_a_build_other_than_the_gated_one_is_refused_with_the_difference(chart: Path) -> None:
    gated = make_build(chart, STAGING, {})
    (chart / "templates" / "service.yaml").unlink()

    with pytest.raises(DeployError, match=r"chart_digest: sha256:.* -> sha256:"):
        check_same(gated, make_build(chart, STAGING, {}))
