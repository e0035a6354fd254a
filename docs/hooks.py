"""What mkdocs does not do by itself: links that leave ``docs/``, and notebooks as pages.

A page's links are those of the repository, so that they work in its browser, too. A file outside
``docs/`` that some page links to is put on the site under ``repository/``.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebooks' pages, and every file of the repository that a page links to."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text = as_markdown(json.loads(notebook.content_string))
        place = str(Path(notebook.src_uri).with_suffix(".md"))
        files.append(File.generated(config, place, content=text))
    waiting = list(files.documentation_pages())
    while waiting:
        page = waiting.pop()
        for link in LINK.finditer(page.content_string):
            target = target_of(repository_path(page.src_uri), link[3])
            if target is None or target.startswith("docs/") or not (ROOT / target).is_file():
                continue
            if files.get_file_from_path(site_path(target)) is None:
                file = File.generated(config, site_path(target), abs_src_path=str(ROOT / target))
                files.append(file)
                waiting += [file] if file.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point the links at their places on the site; those of folders become plain text."""
    here = page.file.src_uri

    def placed(link: re.Match[str]) -> str:
        target = target_of(repository_path(here), link[3])
        if target is None:
            return link[0]  # mkdocs says what is wrong with it
        if (ROOT / target).is_dir():
            return link[2]
        place = os.path.relpath(site_path(target), Path(here).parent)
        return f"{link[1]}[{link[2]}]({place}{link[4] or ''})"

    return LINK.sub(placed, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Leave the roles of reStructuredText away, which docstrings have before a name."""
    return re.sub(r":(?:class|meth|func|mod|attr|data):(?=<code>)", "", html)


def repository_path(place: str) -> str:
    """Where the source of a page of the site lies."""
    inside = place.removeprefix("repository/")
    return inside if inside != place else f"docs/{place}"


def site_path(path: str) -> str:
    """Where a file of the repository lies on the site."""
    if not path.startswith("docs/"):
        return f"repository/{path}"
    return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))


def target_of(source: str, link: str) -> str | None:
    """Return the file or folder of the repository that a link means; None where there is none."""
    path = os.path.normpath(Path(source).parent / link)
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def as_markdown(notebook: dict[str, Any]) -> str:
    """Return the cells of a notebook and what they printed and drew."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![figure](data:image/png;base64,{data['image/png'].strip()})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
