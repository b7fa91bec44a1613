"""A hook of `mkdocs build`: links to folders, which work where the Markdown is read in the repository, on the site.

A folder with a README becomes a link to that page. Any other folder is not part of the site, so its name stays as text.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

DOCS = Path(__file__).parent
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)#:]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the page's Markdown with every link to a folder rewritten."""
    here = PurePosixPath(page.file.src_uri).parent

    def rewrite(link: re.Match[str]) -> str:
        folder = DOCS / here / link["target"]
        if not folder.is_dir():
            return link[0]
        if (folder / "README.md").is_file():
            return f"[{link['text']}]({link['target'].rstrip('/')}/README.md)"
        return f"`{link['text']}`"

    return _LINK.sub(rewrite, markdown)
