"""Files that follow from the nodes: a help page each, the English texts, and tables for the tests of `web/`.

`python -m latentloom.comfy.pages` writes them; a test fails while they differ from the declarations.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from latentloom.comfy.curves import SHAPES, CurveSettings, build_curve
from latentloom.comfy.registry import NODES
from latentloom.comfy.schema import Node, Output, Socket, Widget, native_id
from latentloom.steering.blocks import PRESETS

ROOT = Path(__file__).resolve().parents[3]
HELP = "web/docs"
TEXTS = "locales/en/nodeDefs.json"
MOST_BLOCKS = 48
"""Depth up to which the tests of `web/` compare presets."""
#: Shapes of strengths that `web/` draws without asking; random numbers it leaves to Python.
DRAWN = tuple(shape for shape in SHAPES if shape != "random")
DEPTHS = (1, 2, 6, 30)
LONGEST_DEFAULT = 20
#: Characters that the page's translations would take for their own syntax.
SYNTAX = re.compile(r"[{}@|$]")


def pages(nodes: Iterable[Node] = NODES) -> dict[str, str]:
    """Every file, as path below the repository -> text."""
    nodes = tuple(nodes)
    return {
        **{f"{HELP}/{node.id}.md": help_page(node, nodes) for node in nodes},
        TEXTS: _json({_key(node.id): _texts(node) for node in nodes}),
        "tests/web/presets.json": _lines(preset_table()),
        "tests/web/curves.json": _lines(curve_table()),
    }


def write_pages(root: Path = ROOT) -> None:
    """Write them below a folder, and remove the help of nodes that are no more."""
    written = pages()
    for old in (root / HELP).glob("*.md"):
        if f"{HELP}/{old.name}" not in written:
            old.unlink()
    for name, text in written.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def help_page(node: Node, nodes: Iterable[Node]) -> str:
    """A node's help, as Markdown."""
    parts = [f"# {node.name}", node.description]
    if node.inputs:
        parts += ["## Inputs", "\n".join(_input_lines(node.inputs))]
    if node.outputs:
        lines = [f"- **{output.name}** ({output.type}): {output.tooltip}" for output in node.outputs]
        parts += ["## Outputs", "\n".join(lines)]
    if node.help:
        parts += ["## Notes", node.help.strip()]
    other = twin(node, nodes)
    if other is not None:
        hosts = {"native": "ComfyUI's own Wan nodes", "wrapper": "ComfyUI-WanVideoWrapper"}
        parts.append(
            f"This node is for {hosts[node.host or 'native']}; for {hosts[other.host or 'native']} "
            f"there is **{other.name}** (`{other.id}`)."
        )
    return "\n\n".join(parts) + "\n"


def twin(node: Node, nodes: Iterable[Node]) -> Node | None:
    """The same node for the other host."""
    if node.host is None:
        return None
    for other in nodes:
        pair = (native_id(node.id), other.id) if node.host == "wrapper" else (native_id(other.id), node.id)
        if other.host not in (None, node.host) and pair[0] == pair[1]:
            return other
    return None


def preset_table() -> list[dict[str, str]]:
    """The digits of every preset, one row per depth from 1 block on."""
    return [
        {name: "".join("1" if block in blocks(n) else "0" for block in range(n)) for name, blocks in PRESETS.items()}
        for n in range(1, MOST_BLOCKS + 1)
    ]


def curve_table() -> list[dict[str, object]]:
    """Strengths of every shape at some depths, with the settings that made them."""
    points = ((0.0, 0.2), (0.25, 0.9), (0.25, 0.4), (0.8, 1.0))
    table: list[dict[str, object]] = []
    for shape in DRAWN:
        for num_blocks in DEPTHS:
            custom = {block: block % 7 / 7 for block in range(num_blocks)}
            settings = CurveSettings(0.8, num_blocks // 3, 3.5, 4, custom, points)
            table.append(
                {
                    "shape": shape,
                    "numBlocks": num_blocks,
                    "settings": {
                        "base": settings.base,
                        "peakBlock": settings.peak_block,
                        "spread": settings.spread,
                        "stepSize": settings.step_size,
                        "custom": list(custom.values()),
                        "points": points,
                    },
                    "strengths": build_curve(shape, num_blocks, settings),
                }
            )
    return table


def _texts(node: Node) -> dict[str, object]:
    texts: dict[str, object] = {"display_name": _said(node.name), "description": _said(node.description)}
    if node.inputs:
        texts["inputs"] = {_key(part.name): _named(part) for part in node.inputs}
    if node.outputs:
        texts["outputs"] = {str(index): _named(output) for index, output in enumerate(node.outputs)}
    return texts


def _named(part: Socket | Widget | Output) -> dict[str, str]:
    return {"name": _said(part.name), "tooltip": _said(part.tooltip)}


def _key(name: str) -> str:
    """As the page looks it up, where a dot would part two levels."""
    return name.replace(".", "_")


def _said(text: str) -> str:
    """The text as a message of vue-i18n, in which `{'…'}` is taken as it stands."""
    return SYNTAX.sub(lambda found: f"{{'{found[0]}'}}", text)


def _input_lines(inputs: Iterable[Socket | Widget]) -> Iterator[str]:
    """A line per input; inputs that differ in their number alone share one.

    Not a table: the panel that shows it is some thirty letters wide.
    """
    for _, group in groupby(inputs, key=_without_numbers):
        alike = list(group)
        first, last = alike[0], alike[-1]
        name = f"**{first.name}**" if first is last else f"**{first.name}** to **{last.name}**"
        facts = ", ".join(fact for fact in (first.type, _range(first), _default(first)) if fact)
        yield f"- {name} ({facts}): {_meaning(first, last)}"


def _without_numbers(part: Socket | Widget) -> tuple[object, ...]:
    default = part.default if isinstance(part, Widget) else None
    return re.sub(r"\d+", "#", part.name), part.type, default, re.sub(r"\d+", "#", part.tooltip)


def _meaning(first: Socket | Widget, last: Socket | Widget) -> str:
    text = first.tooltip
    if first is not last:
        ends = [re.findall(r"\d+", part.tooltip) for part in (first, last)]
        for low, high in zip(*ends, strict=True):
            if low != high:
                text = re.sub(rf"\b{low}\b", f"{low} to {high}", text, count=1)
    return text


def _default(part: Socket | Widget) -> str:
    if isinstance(part, Socket):
        return "optional" if part.optional else ""
    if part.linked or part.default == "":
        return ""
    value = ("off", "on")[part.default] if isinstance(part.default, bool) else str(part.default)
    if len(value) > LONGEST_DEFAULT and len(set(value)) == 1:
        value = f"{len(value)} times {value[0]}"
    return f"default {value}"


def _range(part: Socket | Widget) -> str:
    if isinstance(part, Socket):
        return ""
    if part.type == "COMBO":
        # files come and go; the page names what is fixed
        return "" if callable(part.options) else "one of " + ", ".join(part.options)
    if part.low is None and part.high is None:
        return ""
    step = f", step {part.step:g}" if part.step is not None else ""
    return f"{_number(part.low)} to {_number(part.high)}{step}"


def _number(value: float | None) -> str:
    return "any" if value is None else str(int(value)) if value == int(value) else f"{value:g}"


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _lines(rows: Iterable[object]) -> str:
    """JSON with a row to a line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


if __name__ == "__main__":
    write_pages()
