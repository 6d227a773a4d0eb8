"""Gates hold a reader of releases; the import contracts hold the package, this the gate files."""

from pathlib import Path

GATES = Path(__file__).parents[2] / "gates"


def test_no_bundled_gate_can_change_a_release() -> None:
    files = sorted(GATES.rglob("*.py"))
    assert files
    assert [f.name for f in files if "platform.writer" in f.read_text(encoding="utf-8")] == []
