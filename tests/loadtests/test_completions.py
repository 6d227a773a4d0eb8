"""What a server sends back is written down without the key."""

import pytest

from loadtests.completions import presentable

KEY = "sk-0123456789"


@pytest.mark.parametrize(
    ("sent", "written"),
    [
        (f"401 no such key {KEY}", "401 no such key ***"),
        (f"401 no such key {KEY[:9]} …", "401 no such key *** …"),
        ("half a pair \ud800", "half a pair ?"),
        ("x" * 1000, "x" * 300),
    ],
)
def test_neither_the_key_nor_a_part_of_it_is_written_down(sent: str, written: str) -> None:
    assert presentable(sent, KEY) == written
    assert presentable("fine", None) == "fine"
