"""What the site of docs needs beside mkdocs: other pages, sources, and docstrings.

The pages are written for GitHub, where a link may lead anywhere in the repository. On
the site, the README is the front page, and a file of code that a page links to is shown
on a page of its own.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
    'SECURITY.md': 'security.md',
}
LINK = re.compile(r'(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)')


class Docstrings(Extension):
    """Lets griffe read docstrings that are written for readers of the source."""

    def on_instance(self, *, obj: Object, **_) -> None:
        """Name the section of examples as griffe does, and drop Sphinx's roles."""
        if obj.docstring:
            text = re.sub(r'(?m)^Example:$', 'Examples:', obj.docstring.value)
            text = re.sub(r':\w+:`~?[\w.]*?(\w+)`', r'`\1`', text)
            obj.docstring.value = text.replace('``', '`')


def target_on_site(page: str, link: str) -> str:
    """Return where a link of a page leads on the site, both from the project's root.

    Args:
        page: the page's file, such as ``docs/training.md``.
        link: what the page links, relative to it.
    """
    file = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    if file.startswith('docs/'):
        return file.removeprefix('docs/')
    return ELSEWHERE.get(file, f'source/{file}.md')


def linked_sources(pages: list[str]) -> set[str]:
    """Return the files outside docs that pages link to and that are no pages."""
    targets = {
        target_on_site(page, link)
        for page in pages
        for link in LINK.findall((ROOT / page).read_text('utf-8'))
    }
    return {
        target.removeprefix('source/').removesuffix('.md')
        for target in targets
        if target.startswith('source/')
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs, and the sources that pages link to."""
    pages = [f'docs/{file.src_uri}' for file in files.documentation_pages()]
    for file, page in ELSEWHERE.items():
        text = (ROOT / file).read_text('utf-8')
        files.append(File.generated(config, page, content=text))
    for name in sorted(linked_sources([*pages, *ELSEWHERE])):
        text = (ROOT / name).read_text('utf-8')
        language = Path(name).suffix.removeprefix('.') or 'text'
        content = f'# {name}\n\n````{language}\n{text}\n````\n'
        files.append(File.generated(config, f'source/{name}.md', content=content))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Let links lead to where their targets are on the site, and color commands."""
    here = page.file.src_uri
    if here.startswith('source/'):
        return markdown
    # Badges are pictures of another host.
    markdown = re.sub(r'(?m)^\[!\[.*\n', '', markdown)
    # Pygments takes what has no prompt in a console for output, and grays it.
    markdown = re.sub(r'(?m)^```console$', '```bash', markdown)
    names = {site: file for file, site in ELSEWHERE.items()}
    written_in = names.get(here, f'docs/{here}')
    return LINK.sub(
        lambda link: posixpath.relpath(
            target_on_site(written_in, link[1]), posixpath.dirname(here) or '.'
        ),
        markdown,
    )
