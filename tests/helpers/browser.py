"""Measure the pages of a site in a headless Chromium, with Python's standard library alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
OPTIONS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
           '--remote-debugging-port=0', '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1')  # no network
SCRIPT = '''<!doctype html><iframe id="frame" style="border: 0; height: 800px"></iframe><script>
const frame = document.getElementById('frame'), measured = {wide: {}, found: 0};
const load = url => new Promise(done => { frame.onload = done; frame.src = url; });
const results = () => frame.contentDocument.querySelectorAll('#search-results li').length;
(async () => {
  for (const name of %(names)s) {
    await load(name);
    for (const width of %(widths)s) {
      frame.style.width = width + 'px';
      measured.wide[name + ' at ' + width] = frame.contentDocument.documentElement.scrollWidth - frame.clientWidth;
    }
  }
  await load('search.html?q=%(word)s');
  for (let tries = 0; tries < 100 && !results(); tries++) await new Promise(done => setTimeout(done, 100));
  measured.found = results();
  await fetch('measured', {method: 'POST', body: JSON.stringify(measured)});
})();
</script>'''


def measure(site: Path, names: Sequence[str], widths: Sequence[int], word: str, profile: Path) -> dict[str, Any]:
    """Return the pixels by which each page is too wide, by name and width, and how many pages the search finds.

    Args:
        site: folder of the built site.
        names: the pages.
        widths: of the window in pixels.
        word: to search for.
        profile: empty folder for the browser.

    Raises:
        queue.Empty: if the browser sends no result within a minute.
    """
    script = SCRIPT % {'names': json.dumps(names), 'widths': list(widths), 'word': word}
    measured: Queue[dict[str, Any]] = Queue()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != '/measure.html':
                return super().do_GET()
            self._answer(script)

        def do_POST(self) -> None:
            measured.put(json.loads(self.rfile.read(int(self.headers['Content-Length']))))
            self._answer('')

        def _answer(self, text: str) -> None:
            self.send_response(200)
            self.send_header('Content-Type', 'text/html')
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_address[1]}/measure.html'
        browser = subprocess.Popen([str(CHROMIUM), *OPTIONS, f'--user-data-dir={profile}', url],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return measured.get(timeout=60)
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()
