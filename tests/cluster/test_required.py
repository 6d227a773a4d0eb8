"""A missing part is never silently passed over."""

from pathlib import Path

import pytest
from cluster import build_tools
from cluster.build_tools import TOOLS, ToolMissingError, tool
from cluster.required import required_tool


@pytest.fixture
def nothing_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize(
    ("required", "outcome"), [("", pytest.skip.Exception), ("all", pytest.fail.Exception)]
)
def test_a_missing_tool_skips_or_fails_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("VLLM_ROLLOUT_REQUIRE", required)

    with pytest.raises(outcome, match=r"build_tools\.py helm3"):
        required_tool("helm3")


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_is_pinned_and_stamped_with_its_version(name: str) -> None:
    wanted = TOOLS[name]

    assert wanted.version.startswith("v")
    assert all(stamp.format(version="", major="", minor="") for stamp in wanted.stamps)
    assert wanted.linker_flags.count(wanted.version) == min(1, len(wanted.stamps))


def test_what_kubebuilder_has_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    (tmp_path / "etcd").touch(mode=0o755)
    assert tool("etcd") == tmp_path / "etcd"
    with pytest.raises(ToolMissingError, match="kube-controller-manager"):
        tool("kube-controller-manager")


@pytest.mark.usefixtures("nothing_built")
def test_without_go_the_missing_parts_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_tools, "_go", lambda: None)
    monkeypatch.setattr("sys.argv", ["build_tools.py"])
    assert build_tools.main() == 1
    printed = capsys.readouterr().out
    assert "etcd" in printed
    assert "no Go to build them with" in printed
