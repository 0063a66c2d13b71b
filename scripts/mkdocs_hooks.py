"""Hooks of `mkdocs build` for links from the pages to files outside `docs/`.

On GitHub, pages link to recipes, results and cards by relative paths. The website contains the pages alone, so pictures
are copied into it, and other links become the path in the repository, or its address if `repo_url` is set.
"""

import posixpath
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"(!?)\[([^]]*)\]\((\.\./[^)#\s]+)[^)]*\)")
FOLDER = "repository"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pictures that pages show from outside `docs/`."""
    pages = [file for file in files if file.is_documentation_page()]
    for page in pages:
        for is_picture, _, path in OUTSIDE.findall(page.content_string):
            if is_picture:
                name = posixpath.normpath(path.removeprefix("../"))
                source = posixpath.join(posixpath.dirname(config.config_file_path), name)
                files.append(File.generated(config, f"{FOLDER}/{name}", abs_src_path=source))


def on_page_markdown(markdown: str, config: MkDocsConfig, **kwargs: Any) -> str:
    """Replace links that lead outside `docs/`."""

    def replace(link: re.Match) -> str:
        is_picture, text, path = link.groups()
        name = posixpath.normpath(path.removeprefix("../"))
        if is_picture:
            return f"![{text}]({FOLDER}/{name})"
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{name})" if config.repo_url else f"{text} (`{name}`)"

    return OUTSIDE.sub(replace, markdown)
