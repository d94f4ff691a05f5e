"""Pages in a browser, headless Chromium, at the width of a phone and of a screen.

``probe.js`` looks at a page from inside: nothing cut off, nothing loaded, columns that stay put,
rows that fold, words that open, contrast of every text in both colours.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.report.test_pages import exposed_content, named_report, page_of

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--virtual-time-budget=3000",
)  # fmt: skip
PROBE = Path(__file__).with_name("probe.js").read_text()
# a window is 500 dots wide at the least, a frame as wide as is asked for
FRAME = """<iframe src="page.html" width="{width}" height="900" style="border:0"></iframe>
<script>addEventListener("message", (event) => {{
  const made = document.createElement("pre");
  made.id = "found";
  made.textContent = event.data;
  document.body.append(made);
}})</script>"""


@pytest.fixture(scope="module")
def browser():
    """Returns the command of a browser, or skips with the reason."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium; Debian has it as a package: apt-get install -y chromium")
    return found


def look(browser, page, folder, width):
    """Returns what the probe found in a page at a width."""
    page = page.replace("</body>", f"<script>{PROBE}</script></body>")
    (folder / "page.html").write_text(page)
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width))
    words = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}"]
    words += ["--window-size=1400,1000", "--dump-dom", frame.as_uri()]
    made = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="found">(.*?)</pre>', made.stdout, re.DOTALL)
    assert found, made.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_in_a_browser(browser, folder, tmp_path, width):
    content = exposed_content(text="Who wrote, of all these people, the book?" * 3)
    (folder / "pictures/exposed_answers.json").write_text(json.dumps(content))
    found = look(browser, page_of(named_report(), folder), tmp_path, width)
    assert found["wrong"] == []
    assert found["width"] == width
    assert found["light"] != found["dark"]
    assert (found["scrolled"] > 0) == (width == 360)
