"""A browser without a window: what it makes of a page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest


def open_in_browser(page: Path, scratch: Path) -> tuple[str, str, list[str]]:
    """The page's document, the browser's messages, and the addresses that the page asked for."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on the PATH")
    log = scratch / "net.json"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    flags += ["--enable-logging=stderr", "--log-level=0", f"--log-net-log={log}"]
    flags += [f"--user-data-dir={scratch / 'profile'}"]
    done = subprocess.run(
        [browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    asked = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        # What the browser asks for on its own account has no origin.
        initiator = re.search(r'"initiator":"([^"]*)"', line)
        if initiator and initiator[1] != "not an origin":
            asked += re.findall(r'"url":"([^"]*)"', line)
    return done.stdout, done.stderr, asked
