"""A pytest plugin: lists the collected tests, each with its marks, as JSON in the last line."""

import json
import sys

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write the list."""
    listed = {item.nodeid: [mark.name for mark in item.iter_markers()] for item in session.items}
    sys.stdout.write(f"\n{json.dumps(listed)}\n")
