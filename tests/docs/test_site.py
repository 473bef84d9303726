"""The site builds without a warning, its links resolve, and its pages are small."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.helpers.browser import CHROMIUM, measure
from tests.helpers.commands import REPOSITORY

for package in ('sphinx', 'myst_parser', 'furo'):
    pytest.importorskip(package, reason='the site needs Sphinx, furo and myst-parser')


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason='needs chromium (apt-get install chromium)')


class Page(HTMLParser):
    """What a page of the site links to, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {''}
        self.pictures: list[dict] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = dict(attributes)
        self.anchors.update(filter(None, (values.get('id'), values.get('name'))))
        self.links += [values[key] for key in ('href', 'src') if values.get(key)]
        if tag == 'img':
            self.pictures.append(values)


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    """Return the folder of the site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-d', str(folder / 'cache')]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(REPOSITORY), *sys.path])}
    built = subprocess.run([*command, str(REPOSITORY / 'docs'), str(folder / 'html')], capture_output=True, text=True,
                           env=environment)
    assert built.returncode == 0, built.stderr
    return folder / 'html'


@pytest.fixture(scope='module')
def pages(site) -> dict[Path, Page]:
    return {path.resolve(): Page(path) for path in site.rglob('*.html')}


def broken_links(pages: dict[Path, Page]) -> list[str]:
    """Return the links inside the site that lead to no file, or to no anchor of a page."""
    broken = []
    for path, page in pages.items():
        for link in page.links:
            name, _, anchor = unquote(link).partition('#')
            target = (path.parent / name.partition('?')[0]).resolve() if name else path
            if ':' not in name and not name.startswith('//') and not (
                    target.is_file() and (target not in pages or anchor in pages[target].anchors)):
                broken.append(f'{path.name}: {link}')
    return broken


def test_every_link_and_anchor_inside_the_site_resolves(pages):
    assert len(pages) > 30
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert broken_links(pages) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / 'a.html').write_text('<a href="b.html">, <a href="#x">, <a href="a.html#here" id="here">, <a href="http://c">')
    path = (tmp_path / 'a.html').resolve()
    assert broken_links({path: Page(path)}) == ['a.html: b.html', 'a.html: #x']


def test_every_picture_has_an_alternative_text(pages):
    pictures = [picture for page in pages.values() for picture in page.pictures]
    assert len(pictures) > 20
    assert not [picture['src'] for picture in pictures if len(picture.get('alt') or '') < 10]


def test_no_page_is_large(pages):
    assert max(path.stat().st_size for path in pages) < 400_000


def test_the_search_knows_the_text_of_the_pages(site):
    index = (site / 'searchindex.js').read_text()
    for word in ('truncat', 'caffe2', 'mmdeploy', 'fan', 'syncbn'):
        assert word in index


@needs_chromium
def test_no_page_scrolls_sideways_in_a_browser_and_the_search_finds_a_page(site, tmp_path):
    names = sorted(path.name for path in site.glob('*.html'))
    measured = measure(site, names, (1280, 390), 'GuardHook', tmp_path / 'profile')
    assert len(measured['wide']) == 2 * len(names) > 60
    assert {name: pixels for name, pixels in measured['wide'].items() if pixels > 0} == {}
    assert measured['found'] > 0


@needs_chromium
def test_a_wide_page_is_found(tmp_path):
    (tmp_path / 'wide.html').write_text('<body style="margin: 0"><div style="width: 900px">wide</div>')
    (tmp_path / 'search.html').write_text('<ul id="search-results"><li>one</li></ul>')
    measured = measure(tmp_path, ['wide.html'], (1280, 390), 'x', tmp_path / 'profile')
    assert measured == {'wide': {'wide.html at 1280': 0, 'wide.html at 390': 510}, 'found': 1}


def test_the_reference_has_every_public_name(pages, site):
    import mmws
    anchors = pages[(site / 'api.html').resolve()].anchors
    assert not [name for name in mmws.__all__ if name != '__version__' and f'mmws.{name}' not in anchors]
