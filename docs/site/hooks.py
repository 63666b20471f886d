"""Change pages for the site: the README is its home, and links to files outside docs/ become plain text."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]


def on_files(files: Any, config: Any) -> Any:
    """Add the README as the home page."""
    readme = (ROOT / "README.md").read_text()
    # Links there start at the root.
    files.append(File.generated(config, "index.md", content=re.sub(r"\]\(docs/", "](", readme)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page in which links to files that are not part of the site are their texts alone."""
    return re.sub(r"\[([^\]]+)\]\((\.\./[^)]+|[A-Z]+(?:\.md)?)\)", r"\1", markdown)
