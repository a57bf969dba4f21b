"""The Ray dashboard as a person sees it: in a headless browser, behind its token."""

import contextlib
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_TIMEOUT_MS = 60_000


def require_browser() -> None:
    """Skips a test where there is no browser, and says how to have one."""
    pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")


class Dashboard:
    """One page of a browser, and the dashboard's own interface beside it.

    Args:
        page: of Playwright.
        url: of the dashboard.
        token: that it asks for.
    """

    def __init__(self, page: Any, url: str, token: str) -> None:
        self.page = page
        self.url = url
        self._token = token

    @contextlib.contextmanager
    def as_somebody(self, token: str) -> Iterator["Dashboard"]:
        """The dashboard for somebody else, with another token."""
        page = self.page.context.browser.new_page()
        try:
            yield Dashboard(page, self.url, token)
        finally:
            page.close()

    def log_in(self) -> None:
        """Gives the token to the dialogue that asks for it, as a person does."""
        self.page.goto(self.url)
        field = self.page.get_by_label("Authentication Token", exact=True)
        field.fill(self._token)
        field.press("Enter")
        field.wait_for(state="detached")

    def open(self, path: str) -> None:
        """Goes to a page, such as `actors`."""
        self.page.goto(f"{self.url}/#/{path}")

    def open_actor(self, actor_id: str) -> None:
        """Goes to the page of an actor, and unfolds its tasks there."""
        self.page.goto("about:blank")  # what was unfolded for another actor would stay so
        self.open(f"actors/{actor_id}")
        self.page.get_by_text("Tasks History").click()
        self.page.locator("table").first.wait_for(state="visible")

    def filter_tasks(self, name: str) -> None:
        """Has the page's tasks be those that have this in their name; it shows ten at a time."""
        self.page.get_by_label("Name", exact=True).fill(name)
        self.page.keyboard.press("Escape")  # closes the list of names

    def wait_for_text(self, *texts: str) -> None:
        """Until the page shows all of these."""
        for text in texts:
            self.page.get_by_text(text).first.wait_for(state="visible")

    def find_in_log(self, keyword: str) -> None:
        """Has the log of the page show the lines that have a keyword; without one, it shows the first few."""
        self.page.get_by_label("Keyword").first.fill(keyword)

    def text(self) -> str:
        """All that the page shows."""
        return str(self.page.inner_text("body"))

    def rows(self) -> list[dict[str, str]]:
        """The rows of the page's first table, by column."""
        table = self.page.locator("table").first
        titles = [" ".join(title.split()) for title in table.locator("thead th").all_inner_texts()]
        rows = table.locator("tbody tr")
        cells = [rows.nth(index).locator("td").all_inner_texts() for index in range(rows.count())]
        return [dict(zip(titles, row, strict=False)) for row in cells]

    def ask(self, path: str, token: str | None = None, **query: str) -> Any:
        """What the dashboard's HTTP interface answers, as text or plain values.

        Args:
            path: such as `api/v0/actors`.
            token: the right one where not given.
            **query: of the address.

        Raises:
            urllib.error.HTTPError: it refuses.
        """
        url = f"{self.url}/{path}?{urllib.parse.urlencode(query)}"
        headers = {"Authorization": f"Bearer {self._token if token is None else token}"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as response:
            text = response.read().decode(errors="replace")
        return json.loads(text) if response.headers.get_content_type() == "application/json" else text

    def actors(self) -> list[dict[str, Any]]:
        """Actors that live, as the dashboard's interface tells."""
        found = self.ask("api/v0/actors", detail="1", limit="1000")["data"]["result"]["result"]
        return [actor for actor in found if actor["state"] == "ALIVE"]

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Tasks by name, as the dashboard's interface tells."""
        found = self.ask("api/v0/tasks", detail="1", limit="10000")["data"]["result"]["result"]
        return {task["name"]: task for task in found}

    def log_of(self, actor_id: str) -> str:
        """What an actor has written to standard error."""
        return str(self.ask("api/v0/logs/file", actor_id=actor_id, suffix="err", lines="1000", format="text"))


@contextlib.contextmanager
def open_dashboard(url: str, token: str, width: int = 1440, height: int = 900) -> Iterator[Dashboard]:
    """The dashboard in a browser of its own, without anything from before."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without its sandbox, which it does not have as root; it sees the dashboard alone.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(_TIMEOUT_MS)
        yield Dashboard(page, url, token)
        browser.close()
