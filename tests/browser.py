"""Debian's Chromium, which `.ci/browser` installs where it can."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

NOTE = Path(sys.prefix) / ".no-chromium"  # `.ci/browser` tried to install it, and could not
ARGUMENTS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-dev-shm-usage",  # a container has little of it
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def is_expected() -> bool:
    "Tell whether there is Chromium, or `.ci/browser` could install it here."
    if shutil.which("chromium") or NOTE.exists():
        return shutil.which("chromium") is not None
    may = os.geteuid() == 0 or (
        shutil.which("sudo") is not None
        and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0
    )
    return shutil.which("apt-get") is not None and may


@contextmanager
def chromium() -> Iterator[Browser]:
    "Start Chromium with a profile of its own, and end it."
    path = shutil.which("chromium")
    assert path is not None, "chromium is not installed: run .ci/browser"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
