"""The report in a real browser: sorted, switched, pointed at; no script error, nothing loaded.

Needs Chromium and the package websockets: `apt install chromium`, `pip install "stmoe[browser]"`.
"""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from stmoe.analysis.report import report
from stmoe.runs import read as runs
from tests.analysis import synthetic

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
EVIL = '<img src=x onerror=alert(1)>'
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason='there is no Chromium')]


class Browser:
  """A page of a headless Chromium, spoken to by its DevTools protocol; keeps what the page complains of."""

  def __init__(self, profile, width):
    command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-port=0',
               f'--user-data-dir={profile}', f'--window-size={width},1000', 'about:blank']
    self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    self._number, self.complaints, self.requests = 0, [], []
    self._stack = contextlib.ExitStack()
    self._socket = self._connected(profile / 'DevToolsActivePort')
    for domain in ('Runtime', 'Log', 'Network', 'Page'):
      self.call(f'{domain}.enable')

  def _connected(self, file, patience=60):
    """The websocket of the one page."""
    client = pytest.importorskip('websockets.sync.client')
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
      try:
        port = file.read_text().split()[0]
        pages = json.load(urllib.request.urlopen(f'http://127.0.0.1:{port}/json'))
        page = next(page for page in pages if page['type'] == 'page')
        return self._stack.enter_context(client.connect(page['webSocketDebuggerUrl'], max_size=None))
      except (OSError, IndexError, StopIteration, urllib.error.URLError):
        time.sleep(0.2)
    raise TimeoutError('Chromium does not answer')

  def call(self, method, **parameters):
    """The result of a method of the protocol."""
    self._number += 1
    self._socket.send(json.dumps(dict(id=self._number, method=method, params=parameters)))
    while True:
      told = json.loads(self._socket.recv(timeout=60))
      if told.get('method') in ('Runtime.exceptionThrown', 'Log.entryAdded'):
        self.complaints.append(told['params'])
      if told.get('method') == 'Network.requestWillBeSent':
        self.requests.append(told['params']['request']['url'])
      if told.get('id') == self._number:
        return told['result']

  def value(self, expression):
    """What JavaScript's `expression` is."""
    found = self.call('Runtime.evaluate', expression=expression, returnByValue=True)
    assert 'exceptionDetails' not in found, found
    return found['result'].get('value')

  def close(self):
    """Ends the browser."""
    self._stack.close()
    self._process.kill()
    self._process.wait()


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  for method, final in {'switch': 2.0, 'dense': 2.5}.items():
    for seed in (0, 1):
      synthetic.write_run(root / f'{method}_seed{seed}', method, seed=seed, final=final + seed / 100,
                          layers=() if method == 'dense' else ('decoder_01',))
  found = [runs.read(path, EVIL if 'switch_seed0' in path.name else None) for path in sorted(root.iterdir())]
  labels = [EVIL if 'switch' in run.path.name else 'dense' for run in found]
  file = root / 'report.html'
  file.write_text(report.page(found, labels=labels, title=EVIL))
  return file


@pytest.fixture(params=[390, 1400], ids=['narrow', 'wide'])
def browser(request, page, tmp_path):
  opened = Browser(tmp_path / 'profile', request.param)
  opened.call('Page.navigate', url=page.as_uri())
  ends = time.monotonic() + 60
  while not opened.value("document.querySelectorAll('.legend button').length") and time.monotonic() < ends:
    time.sleep(0.2)
  yield opened
  opened.close()


FIRST = "document.querySelector('table.sortable tbody tr td').textContent"


def test_letters_of_a_chart_are_readable_and_apart(browser):
  """At any width: letters have the size of a page's, and the unit stands above the numbers of its axis."""
  boxes = browser.value("""[...document.querySelectorAll('[data-chart] > svg text')].map((text) => {
      const box = text.getBoundingClientRect();
      return [text.classList.contains('strong'), box.top, box.bottom, box.left, box.right]})""")
  [unit] = [box for strong, *box in boxes if strong]
  numbers = [box for strong, *box in boxes if not strong]
  assert all(bottom - top > 10 for top, bottom, *_ in numbers)
  apart = lambda a, b: a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
  assert all(apart(unit, box) for box in numbers)


def test_a_reader_sorts_switches_and_points(browser):
  assert browser.value(FIRST) == EVIL
  bits = "[...document.querySelectorAll('th button')].find((button) => button.textContent == 'bits/byte')"
  browser.value(f'{bits}.click(); {bits}.click()')
  assert browser.value(FIRST) == 'dense'                             # now the highest first
  shown = "[...document.querySelectorAll('table.sortable th')].filter((head) => head.offsetWidth).length"
  before = browser.value(shown)
  browser.value("document.querySelector('input.columns').click()")
  assert before <= 8 < browser.value(shown)
  points = "document.querySelectorAll('[data-chart] circle').length"
  every = browser.value(points)
  browser.value("document.querySelector('.legend button').click()")
  assert browser.value(points) == every // 2 > 0
  browser.value("""{const svg = document.querySelector('[data-chart] > svg');
      const at = svg.getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent('pointermove', {clientX: at.right - 5, clientY: at.top + 50}))}""")
  assert 'steps 200: ' in browser.value("document.querySelector('.reading').textContent")
  for box in range(3):                                               # logarithms, and no training loss
    browser.value(f"document.querySelectorAll('[data-chart] input[type=checkbox]')[{box}].click()")
  assert browser.value("document.querySelectorAll('path.train').length") == 0
  assert 'NaN' not in browser.value("document.querySelector('[data-chart] > svg').outerHTML")
  assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
  assert browser.value("document.querySelectorAll('img[src=x]').length") == 0
  assert browser.complaints == []
  assert all(url.startswith(('file:', 'data:')) for url in browser.requests)
