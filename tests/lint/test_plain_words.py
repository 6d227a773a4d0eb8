"""The word list finds what it lists, where it stands, and leaves ordinary uses alone."""

import pytest
from lint.plain_words import TEXTS, check, found_in, found_in_code

SOURCE = '''"""What is checked.

Made
anew.
"""
REMEDY = (
    "Mend it as "
    "ever."
)
# The first
# look decides, and nobody is told.
told = 1
'''


def test_words_are_found_in_docstrings_strings_and_comments():
    found = {(line, word) for line, word, _ in found_in_code(SOURCE)}
    assert found == {
        (1, "What"),
        (4, "anew"),
        (7, "Mend"),
        (7, "as ever"),
        (10, "first look"),
        (11, "told"),
    }


@pytest.mark.parametrize(
    "text", ["it looks at the pods", "a look-up", "a way to reach it", "amended", "no details"]
)
def test_an_ordinary_use_is_no_finding(text):
    assert list(found_in(text)) == []


def test_findings_name_the_file_and_the_replacement(tmp_path):
    for page in TEXTS:
        (tmp_path / page).write_text("One line.\nSurely another.\n" if page[0] == "R" else "")
    assert check(tmp_path) == ["README.md:2: 'Surely': use certainly, or the confidence"]
