"""Files and tests that the documentation names as evidence are there."""

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(CHECKOUT / "docs").rglob("*.md"), CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md"])
# `losses/...` is a path in other projects as well
FOLDERS = ("tests", "docs", "notebooks", "benchmarks", "experiments", "lightning_modules", "datamodules")
NAMED = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+?\.\w+)(?:::(\w+))?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(CHECKOUT).as_posix())
def test_named_files_and_tests_exist(page: Path) -> None:
    for name, test in NAMED.findall(page.read_text()):
        assert (CHECKOUT / name).is_file(), f"{page.name} names {name}"
        if test:
            assert f"def {test}(" in (CHECKOUT / name).read_text(), f"{page.name} names {name}::{test}"


def test_the_questions_name_their_evidence() -> None:
    """Each answer has a test, a file, a command or a link in it."""
    page = (CHECKOUT / "docs" / "questions.md").read_text()
    answers = re.split(r"^### .*\n", page, flags=re.MULTILINE)[1:]
    assert len(answers) > 20
    for answer in answers:
        assert re.search(r"`[^`]+`|\]\(", answer), answer


def test_links_of_the_readme_lead_somewhere() -> None:
    for page in (CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (CHECKOUT / target).exists(), f"{page.name} links to {target}"
