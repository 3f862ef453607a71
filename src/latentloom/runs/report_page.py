"""The page around a report: calm, readable, light or dark as the reader's system is."""

from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib.metadata import version

# nothing may be fetched: even a mistake in a report cannot reach the network
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --ink: #22262e; --soft: #687080; --line: #e2e3e6; --panel: #ffffff; --accent: #2d6a8f;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #dfe2e7; --soft: #98a0ad; --line: #2f333a; --panel: #1d2025; --accent: #7fb8d8; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans",
    sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; font-weight: 650; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; line-height: 1.3; font-weight: 620; margin: 3rem 0 .75rem; scroll-margin-top: 1rem; }
p { max-width: 44rem; margin: .75rem 0; white-space: pre-line; overflow-wrap: break-word; }
nav { margin: 1.25rem 0 0; padding: 0 0 1.25rem; border-bottom: 1px solid var(--line); font-size: .925rem; }
nav a { color: var(--accent); text-decoration: none; margin-right: 1.4rem; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
.table { overflow-x: auto; margin: 1.25rem 0; }
table { border-collapse: collapse; font-size: .925rem; min-width: 24rem; }
th, td { text-align: left; padding: .45rem 1.2rem .45rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 550; border-bottom-width: 2px; white-space: nowrap; vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
figure { margin: 1.5rem 0; }
figcaption { color: var(--soft); font-size: .875rem; line-height: 1.45; margin-top: .5rem; max-width: 44rem;
  overflow-wrap: break-word; }
img, video { display: block; max-width: 100%; height: auto; border-radius: 6px; }
img.plot { background: #ffffff; padding: .75rem; border: 1px solid var(--line); }
img.pixels, video { image-rendering: pixelated; box-shadow: 0 0 0 1px var(--line); }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(10.5rem, 100%), 1fr)); gap: 1.5rem 1.25rem;
  margin: 1.5rem 0; }
.clips figure { margin: 0; }
.clips video { width: 100%; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .825rem; }
@media print { main { padding: 0; } figure, tr { break-inside: avoid; } }
"""


def page(title: str, contents: Sequence[str], parts: Sequence[str]) -> str:
    """The whole HTML document.

    Args:
        title: plain text.
        contents: headings to list at the top, plain text, in order; empty for no list.
        parts: the body, as HTML.
    """
    links = "\n".join(f'<a href="#section-{number}">{escape(text)}</a>' for number, text in enumerate(contents, 1))
    navigation = f"<nav>{links}</nav>" if contents else ""
    body = "\n".join(parts)
    written = f"Written by LatentLoom {version('latentloom')} on {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}."
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{navigation}
{body}
<footer>{escape(written)}</footer>
</main>
</body>
</html>
"""
