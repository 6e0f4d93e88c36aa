"""What mkdocs needs to build these pages: files of the repository that they link to, and docstrings as Markdown.

A page is read in the repository too, where a link such as ``../examples/tcp_daemon.py`` is right as it stands. The site
gets a copy of each such file; a page of Markdown becomes a page of the site. A directory that is linked to is named
there, and no more. Nothing is loaded from the net: a page that would is a warning, which is an error in CI.
"""

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any, Final

import griffe
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT: Final = Path(__file__).parents[1]
LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
LOADS: Final = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
FENCED: Final = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

log: Final = logging.getLogger("mkdocs.hooks.site")


def in_repository(page: str, target: str) -> str:
    """Return the path in the repository of what *page*, which is there, links to as *target*."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def links(page: str) -> set[str]:
    """Return the files in the repository that a page of Markdown links to."""
    text = FENCED.sub("", (ROOT / page).read_text())
    targets = {in_repository(page, match[3]) for match in LINK.finditer(text) if "//" not in match[3]}
    return {target for target in targets if not target.startswith("../") and (ROOT / target).is_file()}


def on_files(files: Files, *, config: Any) -> Files:
    """Add what is linked to, and what that links to, as far as it lies outside of docs/."""
    to_read = [f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")]
    seen = set(to_read)
    while to_read:
        for target in sorted(links(to_read.pop())):
            if target in seen or target.startswith("docs/") or target == "README.md":
                continue
            seen.add(target)
            level = InclusionLevel.NOT_IN_NAV if target.endswith(".md") else InclusionLevel.INCLUDED
            files.append(File.generated(config, target, abs_src_path=os.fspath(ROOT / target), inclusion=level))
            if target.endswith(".md"):
                to_read.append(target)
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Make links right for the site; what is not in it is named without a link."""
    here = page.file.src_uri
    source = here if page.file.generated_by else f"docs/{here}"

    def rewritten(match: re.Match[str]) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if "//" in target:
            return match[0]
        path = in_repository(source, target)
        wanted = "index.md" if path == "README.md" else path.removeprefix("docs/")
        if files.get_file_from_path(wanted) is None:
            return match[0] if not (ROOT / path).exists() else text
        return f"{image}[{text}]({posixpath.relpath(wanted, posixpath.dirname(here) or '.')}{anchor})"

    parts, end = [], 0
    for block in FENCED.finditer(markdown):
        parts += [LINK.sub(rewritten, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(rewritten, markdown[end:])])


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Tell of what a reader's browser would load from elsewhere."""
    for tag in LOADS.findall(output):
        if 'rel="canonical"' not in tag:
            log.warning("%s loads %s", page.file.src_uri, tag)
    return output


class AsWritten(griffe.Extension):
    """Shows docstrings and defaults as they are meant.

    The ``::`` before a literal block is dropped: the block is indented, which is enough in Markdown. Permission bits
    are octal.
    """

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^[ \t]*::$", "", obj.docstring.value, flags=re.MULTILINE)

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        for parameter in func.parameters:
            if parameter.name.endswith("mode") and str(parameter.default).isdigit():
                parameter.default = oct(int(str(parameter.default)))
