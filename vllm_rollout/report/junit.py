"""JUnit XML of evidence: a test case for each row of the report.

A fail is a failure. What could not be known is an error, apart from failures, whose message begins
with `inconclusive: `. Where a part of the gates was run alone, the others are skipped.
"""

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping

from vllm_rollout.model.deployment import Build
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.text import one_line
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.formatting import verdict_text
from vllm_rollout.report.rows import ReportItem, report_items

_ELEMENTS = {Outcome.FAIL: "failure", Outcome.INCONCLUSIVE: "error"}


def junit_xml(evidence: Evidence) -> bytes:
    """The document; it says when the gates ran, and no machine's name."""
    items = report_items(evidence)
    part = evidence.exit_code is None and all(run.gates for run in evidence.runs)
    elements = {item.node_id: _element(item, part=part) for item in items}
    counts = Counter(elements.values())
    root = ET.Element("testsuites", name="pytest tests")
    suite = ET.SubElement(
        root,
        "testsuite",
        name=one_line(evidence.model),
        errors=str(counts["error"]),
        failures=str(counts["failure"]),
        skipped=str(counts["skipped"]),
        tests=str(len(items)),
        time=f"{(evidence.finished - evidence.started).total_seconds():.3f}",
        timestamp=evidence.started.isoformat(),
        hostname="localhost",
    )
    builds = {run.deployment.environment: run.build for run in evidence.runs}
    digests = dict.fromkeys(build.digest for build in builds.values() if build)
    about = {
        "model": evidence.model,
        "environment": ",".join(builds),
        "build": ",".join(digests) or None,
        "evidence_digest": evidence.digest,
        "run_id": evidence.run_id,
        "exit_code": evidence.exit_code,
    }
    _add_properties(ET.SubElement(suite, "properties"), about)
    for item in items:
        _add_case(suite, item, elements[item.node_id], builds.get(item.environment))
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _element(item: ReportItem, *, part: bool) -> str:
    if part and item.missing:
        return "skipped"
    return _ELEMENTS.get(item.outcome, "")


def _add_case(suite: ET.Element, item: ReportItem, element: str, build: Build | None) -> None:
    group, _, name = item.node_id.partition("::")
    case = ET.SubElement(
        suite, "testcase", classname=one_line(group), name=name, time=f"{item.duration_seconds:.3f}"
    )
    properties = ET.SubElement(case, "properties")
    of = {"environment": item.environment, "build": build.digest if build else None}
    _add_properties(properties, of)
    for number, verdict in enumerate(item.verdicts, start=1):
        suffix = f".{number}" if len(item.verdicts) > 1 else ""
        _add_properties(properties, _figures(verdict), suffix)
    if element:
        deciding = next(v for v in item.verdicts if v.outcome is item.outcome)
        message = f"{item.outcome}: {one_line(deciding.reason)}"
        texts = [f"{each.outcome.upper()}  {verdict_text(each)}" for each in item.verdicts]
        ET.SubElement(case, element, message=message).text = "\n\n".join(texts)


def _add_properties(properties: ET.Element, values: Mapping[str, object], suffix: str = "") -> None:
    """Add a property for each value that is known."""
    for name, value in values.items():
        if value is not None:
            text = one_line(str(value))
            ET.SubElement(properties, "property", name=name + suffix, value=text)


def _figures(verdict: Verdict) -> dict[str, object]:
    return {
        "outcome": verdict.outcome.value,
        "measured": verdict.measured,
        "lower": verdict.lower,
        "upper": verdict.upper,
        "limit": verdict.limit,
        "unit": verdict.unit or None,
        "confidence": verdict.confidence,
        "n": verdict.n,
    }
