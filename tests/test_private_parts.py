"""What this suite uses of its dependencies that is no public API of theirs.

| dependency       | tested         | part                         | used by                      |
|------------------|----------------|------------------------------|------------------------------|
| geventhttpclient | 2.6            | `_parser.HTTPResponseParser` | loadtests/connections.py     |
| locust           | 2.43.4 to 2.47 | `runners.HEARTBEAT_LIVENESS` | loadtests/locustfile.py      |
| kubernetes       | 37             | `V1ListMeta._continue`       | platform/kubernetes/store.py |
| pytest-html      | 4.2            | `resources/`: page and style | report/html.py               |
| pytest           | 9              | `_pytest.mark`               | tests alone                  |
| pytest           | 9              | options of its `Parser`      | pytest_plugin/gate_options.py |

`pyproject.toml` bounds them, but for kubernetes and pytest, to the tested versions. A newer one is
taken by moving the bound when these tests pass with it.
"""

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vllm_rollout.model.evidence import read_evidence

ADVICE = "see tests/test_private_parts.py before its bound in pyproject.toml is moved"

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "reports" / "example" / "evidence.json"


def test_no_private_module_is_imported_that_is_not_declared_here() -> None:
    folders = [ROOT / name for name in ("vllm_rollout", "loadtests", "gates")]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_bytes()))]
    imported = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    private = {name for name in imported if any(part.startswith("_") for part in name.split("."))}
    assert private == {"geventhttpclient._parser"}, private


@pytest.mark.parametrize("name", ["geventhttpclient", "locust", "pytest-html"])
def test_the_installed_version_is_one_that_was_tested(name: str) -> None:
    declared = (Requirement(each) for each in metadata.requires("vllm-rollout") or ())
    (bound,) = [each.specifier for each in declared if each.name == name]
    assert any(each.operator == "<" for each in bound), f"{name} has no upper bound; {ADVICE}"
    assert metadata.version(name) in bound, f"{name} is not a tested version; {ADVICE}"


def test_geventhttpclient_still_calls_the_parsers_callbacks() -> None:
    from geventhttpclient._parser import HTTPResponseParser

    calls: list[str] = []

    class Recorder(HTTPResponseParser):  # type: ignore[misc]
        def _on_message_begin(self) -> None:
            calls.append("begin")

        def _on_status(self, text: str) -> None:
            calls.append(f"status {text}")

        def _on_header_field(self, text: str) -> None:
            calls.append(f"field {text}")

        def _on_header_value(self, text: str) -> None:
            calls.append(f"value {text}")

        def _on_headers_complete(self) -> None:
            calls.append(f"headers {self.get_code()}")

        def _on_body(self, part: bytearray) -> None:
            calls.append(f"body {part.decode()}")

        def _on_message_complete(self) -> None:
            calls.append(f"complete {self.should_keep_alive()}")

    Recorder().feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    expected = [
        "begin",
        "status OK",
        "field Content-Length",
        "value 2",
        "headers 200",
        "body hi",
        "complete True",
    ]
    assert calls == expected, f"geventhttpclient parses differently; {ADVICE}"


def test_locust_still_reads_its_heartbeat_constant_when_a_worker_reports() -> None:
    code = (
        "from locust.runners import HEARTBEAT_LIVENESS, MasterRunner; "
        "print(type(HEARTBEAT_LIVENESS), *MasterRunner.handle_message.__code__.co_names)"
    )
    # In a process of its own: importing Locust patches the standard library.
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "<class 'int'>" in run.stdout, f"locust has no such constant: {run.stderr}; {ADVICE}"
    assert "HEARTBEAT_LIVENESS" in run.stdout, f"locust counts heartbeats otherwise; {ADVICE}"


def test_kubernetes_still_calls_the_next_page_continue() -> None:
    from kubernetes.client import V1ListMeta

    found = V1ListMeta(_continue="next")
    assert found._continue == "next", "kubernetes names the next page otherwise"
    assert V1ListMeta.attribute_map["_continue"] == "continue", "kubernetes"


def test_the_page_of_pytest_html_still_takes_what_it_is_given() -> None:
    from jinja2 import Environment, PackageLoader
    from jinja2.meta import find_undeclared_variables

    from vllm_rollout.report.html import page_fields

    made = Environment(loader=PackageLoader("pytest_html", "resources"), autoescape=True)
    source, *_ = PackageLoader("pytest_html", "resources").get_source(made, "index.jinja2")
    asked = find_undeclared_variables(made.parse(source))
    assert asked == set(page_fields(read_evidence(EXAMPLE))), f"pytest-html; {ADVICE}"
