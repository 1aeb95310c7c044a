"""A page of headings, words, tables and pictures, written as Markdown and as one HTML file.

Owns the form. The HTML holds its pictures; the Markdown names the files beside it.
"""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass, field
from pathlib import Path

from distill.evaluation.tables import Table

_MEDIA = {".webp": "image/webp", ".png": "image/png", ".svg": "image/svg+xml"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 1120px; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 2.2rem; font-size: 1.25rem;
  border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; white-space: nowrap; }
td small { color: #666; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e5e5e5; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
table.words td, table.words th { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.words td:first-child { white-space: nowrap; }
thead th { border-bottom: 2px solid #999; }
figure { margin: 1rem 0; } figcaption { font-size: 13px; color: #555; }
img { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Picture:
    """A file beside the page, its caption below."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Words:
    """A paragraph, or a list where there are several lines."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Heading:
    """Begins a part of the page."""

    text: str


Block = Heading | Words | Table | Picture


@dataclass
class Page:
    """Blocks in order.

    Attributes:
        title: of the page.
        folder: where it is written; pictures are named from there.
        blocks: what it holds.
    """

    title: str
    folder: Path
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        """Append in order."""
        self.blocks.extend(blocks)

    def markdown(self) -> str:
        """Return the page as Markdown."""
        return "\n".join([f"# {self.title}\n", *(self._markdown(b) for b in self.blocks)])

    def html(self) -> str:
        """Return the page as one HTML document that needs no other file."""
        body = "\n".join(self._html(block) for block in self.blocks)
        title = html.escape(self.title)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
        )

    def _markdown(self, block: Block) -> str:
        match block:
            case Heading():
                return f"## {block.text}\n"
            case Words():
                start = "- " if len(block.lines) > 1 else ""
                return "\n".join(start + line for line in block.lines) + "\n"
            case Table():
                return block.markdown()
            case Picture():
                where = block.path.relative_to(self.folder).as_posix().replace(" ", "%20")
                return f"![{block.caption}]({where})\n\n*{block.caption}*\n"

    def _html(self, block: Block) -> str:
        match block:
            case Heading():
                return f"<h2>{html.escape(block.text)}</h2>"
            case Words():
                lines = [html.escape(line) for line in block.lines]
                if len(lines) == 1:
                    return f"<p>{lines[0]}</p>"
                return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"
            case Table():
                return f'<div class="wide">{block.html()}</div>'
            case Picture():
                caption = html.escape(block.caption)
                return f"<figure>{_inline(block)}<figcaption>{caption}</figcaption></figure>"


def _inline(picture: Picture) -> str:
    coded = base64.b64encode(picture.path.read_bytes()).decode()
    media = _MEDIA[picture.path.suffix]
    alt = html.escape(picture.caption, quote=True)
    return f'<img alt="{alt}" src="data:{media};base64,{coded}">'
