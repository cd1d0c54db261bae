"""Name the links of the built site that lead nowhere: `python docs/check_links.py docs/_build/html`."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of a page and what it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.anchors, self.links = path, {"", "top"}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.links += [values[name] for name in ("href", "src") if name in values]


def broken(root: Path) -> list[str]:
    """Links of the pages below a folder whose file or anchor is not there."""
    paths = [path for path in root.rglob("*.html") if "_static" not in path.parts]  # the theme's own templates
    pages = {path.resolve(): Page(path) for path in paths}
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (target in pages and unquote(parts.fragment) not in pages[target].anchors):
                found.append(f"{path.relative_to(root.resolve())}: {link}")
    return sorted(set(found))


if __name__ == "__main__":
    links = broken(Path(sys.argv[1]))
    if links:
        sys.exit("\n".join(["These links lead nowhere:", *links]))
