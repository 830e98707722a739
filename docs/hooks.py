"""Extend mkdocs: pages from outside docs, the notebook, sources and docstrings.

The pages are written for GitHub, where a link may lead anywhere in the repository. On
the site, the README is the front page, and the notebook and every linked source file
have a page of their own.
"""

from __future__ import annotations

import json
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
    'docs/notebooks/finetune.ipynb': 'notebook.md',
}
LINK = re.compile(r'(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)')


class Docstrings(Extension):
    """Adapt docstrings that are written for readers of the source to griffe."""

    def on_instance(self, *, obj: Object, **_) -> None:
        """Rename the section of examples for griffe, and drop Sphinx's roles."""
        if obj.docstring:
            text = re.sub(r'(?m)^Example:$', 'Examples:', obj.docstring.value)
            text = re.sub(r':\w+:`~?[\w.]*?(\w+)`', r'`\1`', text)
            obj.docstring.value = text.replace('``', '`')


def target_on_site(page: str, link: str) -> str:
    """Return the site's page for a link of a page.

    Args:
        page: the page's file, such as ``docs/training.md``.
        link: the link's target, relative to the page.
    """
    file = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    if file in ELSEWHERE:
        return ELSEWHERE[file]
    if file.startswith('docs/'):
        return file.removeprefix('docs/')
    return f'source/{file}.md'


def page_of(file: str) -> str:
    """Return the Markdown of a file of ``ELSEWHERE``, for a notebook of its cells."""
    text = (ROOT / file).read_text('utf-8')
    if not file.endswith('.ipynb'):
        return text
    link = posixpath.relpath(file, 'docs')
    cells = [
        ''.join(cell['source'])
        if cell['cell_type'] == 'markdown'
        else f'```python\n{"".join(cell["source"])}\n```'
        for cell in json.loads(text)['cells']
    ]
    title, *rest = cells
    note = (
        f'<a href="{link}" download>Download the notebook</a> and run it in Jupyter or '
        'Colab (*File > Upload notebook*).'
    )
    return '\n\n'.join([title, note, *rest])


def linked_sources(pages: list[str]) -> set[str]:
    """Return the files that pages link to and that have no page of their own."""
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
    """Add pages from outside docs, the notebook, and the sources that pages link to."""
    pages = [f'docs/{file.src_uri}' for file in files.documentation_pages()]
    for file, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=page_of(file)))
    for name in sorted(linked_sources([*pages, *ELSEWHERE])):
        text = (ROOT / name).read_text('utf-8')
        language = Path(name).suffix.removeprefix('.') or 'text'
        content = f'# {name}\n\n````{language}\n{text}\n````\n'
        files.append(File.generated(config, f'source/{name}.md', content=content))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Point links to their targets on the site, and highlight commands."""
    here = page.file.src_uri
    if here.startswith('source/'):
        return markdown
    # Badges would be loaded from another host.
    markdown = re.sub(r'(?m)^\[!\[.*\n', '', markdown)
    # Without prompts, Pygments takes commands in a console for output.
    markdown = re.sub(r'(?m)^```console$', '```bash', markdown)
    names = {site: file for file, site in ELSEWHERE.items()}
    written_in = names.get(here, f'docs/{here}')
    return LINK.sub(
        lambda link: posixpath.relpath(
            target_on_site(written_in, link[1]), posixpath.dirname(here) or '.'
        ),
        markdown,
    )
