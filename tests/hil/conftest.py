"""A page is looked at as a browser would: what would it load?"""

from html.parser import HTMLParser

import pytest

LOADING = ("src", "href", "xlink:href", "data", "srcset", "action", "poster")


class References(HTMLParser):
    """Collects everything on a page that points outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag in ("script", "link", "iframe", "img", "image", "object", "embed", "base"):
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            if name in LOADING or "url(" in (value or ""):
                self.found.append(f"{name}={value}")

    def handle_data(self, data) -> None:
        if "@import" in data or "url(" in data:
            self.found.append(data)


@pytest.fixture
def references():
    """List what a page or picture would load."""

    def of(page: str) -> list[str]:
        parser = References()
        parser.feed(page)
        parser.close()
        return parser.found

    return of
