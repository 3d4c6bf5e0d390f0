"""What the README shows is what the repository has."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_the_client_in_the_readme_is_the_example_that_is_tested() -> None:
    example = (ROOT / "examples" / "grpc_client.py").read_text()
    code = example[example.index("import sys") :].strip()
    assert code in README


def test_links_in_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
