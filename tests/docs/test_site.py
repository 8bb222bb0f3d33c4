"""The site builds without a warning; its links lead somewhere; a browser loads nothing from elsewhere."""

import html
import os
import re
import subprocess
import sys
import urllib.parse

import pytest

from tests.docs import pages

pytestmark = pytest.mark.slow
ELSEWHERE = re.compile(r'^(https?:)?//|^(data|mailto):')
LOADED = re.compile(r'<(?:script|img|iframe|source)\b[^>]*?\ssrc="([^"]*)"|<link\b[^>]*?\shref="([^"]*)"')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """The folder of the site, built with warnings as errors where no network can be reached."""
  folder = tmp_path_factory.mktemp('site')
  nowhere = dict.fromkeys(('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'), 'http://127.0.0.1:9')
  done = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)],
                        cwd=pages.ROOT, env=os.environ | nowhere | dict(NO_MKDOCS_2_WARNING='1'),
                        capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


@pytest.fixture(scope='module')
def texts(site):
  """dict path in the site -> text, of all its pages."""
  files = site.rglob('*.html')
  return {path.relative_to(site).as_posix(): path.read_text(encoding='utf-8') for path in files}


def links(text):
  """Returns the set of what the links of a page name, unescaped."""
  return {html.unescape(link) for link in re.findall(r'<a\b[^>]*?\shref="([^"]*)"', text)}


def followed(page, link):
  """Returns (path in the site, place on the page) of a link that stands on `page`."""
  path, _, place = link.partition('#')
  path = urllib.parse.unquote(path)
  target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
  return target, urllib.parse.unquote(place)


def test_links_lead_to_pages_and_places_that_exist(site, texts):
  there = {page: set(map(html.unescape, re.findall(r'\s(?:id|name)="([^"]*)"', text)))
           for page, text in texts.items()}
  broken = []
  for page, text in texts.items():
    for link in links(text):
      if ELSEWHERE.search(link) or page == '404.html':               # whose links are from the top
        continue
      target, place = followed(page, link)
      named = place and not place.startswith('__') and target in there     # __: of the theme
      if not (site / target).exists() or named and place not in there[target]:
        broken.append(f'{page}: {link}')
  assert broken == []


def test_a_browser_loads_nothing_from_elsewhere(site, texts):
  for page, text in texts.items():
    for loaded in (html.unescape(''.join(pair)) for pair in LOADED.findall(text)):
      assert not ELSEWHERE.search(loaded) or loaded.startswith('data:'), f'{page}: {loaded}'
      if page != '404.html' and not loaded.startswith('data:'):
        assert (site / followed(page, loaded)[0]).exists(), f'{page}: {loaded}'
  for style in site.rglob('*.css'):
    assert not re.search(r'(url\(|@import )["\']?https?:', style.read_text(encoding='utf-8')), style


def test_every_page_is_found_from_the_first(texts):
  reached, waiting = set(), ['index.html']
  while waiting:
    page = waiting.pop()
    if page in reached or page not in texts:
      continue
    reached.add(page)
    waiting += [followed(page, link)[0] for link in links(texts[page]) if not ELSEWHERE.search(link)]
  written = {path.relative_to(pages.ROOT / 'docs').with_suffix('.html').as_posix().replace('README', 'index')
             for path in (pages.ROOT / 'docs').rglob('*.md')}
  assert written <= reached
  assert set(texts) - reached == {'404.html'}


def test_pages_of_methods_and_of_the_reference_hold_what_they_promise(texts):
  assert 'id="stmoe.routers.adamoe.AdaMoE"' in texts['methods/adamoe.html']
  plain = re.sub('<[^>]*>', '', texts['methods/adamoe.html'])
  assert 'num_null' in plain and '46.7e9' in plain and 'better than top-2' in plain
  assert 'id="stmoe.api.layer"' in texts['reference/python.html']
  assert 'usage: stmoe train' in texts['reference/commands.html']
  assert texts['methods/index.html'].count('arXiv:') > 80
