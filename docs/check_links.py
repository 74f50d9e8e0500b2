"""Follows every link of the built pages, and refuses pages that fetch anything from a network.

python docs/check_links.py docs/_build/html
"""

import pathlib
import sys
import urllib.parse
from html.parser import HTMLParser

_FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}


class Page(HTMLParser):
    """What a page links to, what a browser fetches for it, and the names of its parts."""

    def __init__(self, text: str):
        super().__init__()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value for name, value in attrs if value}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif _FETCHED.get(tag) in given:
            self.fetched.add(given[_FETCHED[tag]])


def problems(folder: pathlib.Path) -> list[str]:
    """One line for each link that leads nowhere, and each thing that is fetched from elsewhere."""
    pages = {path: Page(path.read_text()) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(folder)
        for link in sorted(page.links | page.fetched):
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.fetched and parts.scheme != "data":
                    found.append(f"{where}: fetches {link}")
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{where}: {link} leads nowhere")
                continue
            names = pages[target].names if target in pages and link in page.links else None
            if parts.fragment and names is not None and urllib.parse.unquote(parts.fragment) not in names:
                found.append(f"{where}: {link} leads to no part of {target.name}")
    for sheet in sorted([*folder.rglob("*.css"), *folder.rglob("*.js")]):
        text = sheet.read_text(errors="replace")
        for sign in ("@import url(http", "url(http", "url('http", 'url("http', "importScripts("):
            if sign in text:
                found.append(f"{sheet.relative_to(folder)}: fetches {sign}")
    return found


if __name__ == "__main__":
    lines = problems(pathlib.Path(sys.argv[1]).resolve())
    print(*lines, sep="\n") if lines else None
    sys.exit(bool(lines))
