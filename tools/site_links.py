"""Links of the pages that lead out of `docs/`, for the site: to files that are not on it.

The explorer of the published results is made for the site. Pictures come along; of other links, to
code and folders of the repository, the text alone stays.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

from d2dmoe.explorer.page import page as explorer_page
from d2dmoe.plan.explored import published

ROOT = Path(__file__).parents[1]
EXPLORER = "explorer/reference.html"
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)+([^)]+)\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\((?:\.\./)+([^)]+)\)")


def on_files(files, config):
    """Add the explorer, and the published pictures that pages show."""
    explorer = explorer_page(published(ROOT / "results/reference"))
    files.append(File.generated(config, EXPLORER, content=explorer))
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    for _label, path in sorted(set(PICTURE.findall(pages))):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links out of `docs/` be what they can be on the site."""
    up = "../" * page.file.src_uri.count("/")
    markdown = PICTURE.sub(rf"![\1]({up}\2)", markdown)
    return OUTSIDE.sub(r"\1", markdown)
