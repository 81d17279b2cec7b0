r"""The picture of the explorer in the documentation, taken by a browser without a window.

uv run snakemake --cores 1 results/explorer/reference.html
uv run --with playwright python tools/explorer_picture.py \
    results/explorer/reference.html docs/explorer.png
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

SIZE = {"width": 1440, "height": 1180}
page_file, picture = map(Path, sys.argv[1:])

with sync_playwright() as driver:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
    page = browser.new_page(viewport=SIZE)
    page.goto(page_file.resolve().as_uri())
    page.screenshot(path=picture)
    browser.close()
