"""What an HTML page is made of."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects what a page is made of: (tag, attributes, keyed ancestor)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def keyed(self, key: str) -> list[str]:
        return sorted(tag for tag, attrs in self.tags if attrs.get("data-key") == key)
