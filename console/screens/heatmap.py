"""Which contributions agree, and where in the model: a picture of their cosines, one square per group of layers.

Blue is one direction, white is none in common, orange is against each other: colours that stay apart for
colour-blind readers, with the number in each cell while there is room. Light and dark follow the reader's page.
"""

from console.screens.drawing import safe, text
from consortium.merging.report import Group, Inspection

_BLUE, _WHITE, _ORANGE, _NONE = (33, 102, 172), (247, 247, 247), (179, 88, 6), (150, 150, 150)
_STYLE = """
  text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #1f2328 }
  .paper { fill: #ffffff } .title { font-weight: 600; font-size: 14px } .cell { text-anchor: middle }
  .on-light { fill: #000000 } .on-dark { fill: #ffffff } .number { text-anchor: middle; fill: #59636e }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .paper { fill: #0d1117 } .number { fill: #9198a1 }
    .on-light { fill: #000000 } .on-dark { fill: #ffffff }
  }
"""
_MARGIN, _GAP, _HEAD, _LINE = 24, 28, 38, 18
_NUMBERED = 8  # contributions up to which the cells are wide enough for a number
_WIDTH = 960  # into which as many squares are put side by side as fit


def heat_map(report: Inspection, title: str) -> str:
    """The picture as SVG; the same bytes for the same report."""
    count = len(report.contributions)
    cell = 38 if count <= _NUMBERED else max(10, 304 // count)
    side = cell * count
    step_x, step_y = max(side, 150) + _GAP + 20, side + _HEAD + _GAP
    columns = min(len(report.groups), max(1, (_WIDTH - 2 * _MARGIN) // step_x))
    rows = -(-len(report.groups) // columns)
    below = _MARGIN + 46 + rows * step_y
    width = max(2 * _MARGIN + columns * step_x, 560)
    height = below + _LINE * count + _MARGIN + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img">',
        f"<title>{safe(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        text(_MARGIN, _MARGIN + 12, title, "title"),
        text(_MARGIN, _MARGIN + 32, _about(report)),
    ]
    for index, group in enumerate(report.groups):
        left = _MARGIN + 20 + index % columns * step_x
        top = _MARGIN + 46 + index // columns * step_y + _HEAD
        parts += _square(group, left, top, cell, numbered=count <= _NUMBERED)
    parts += _scale(_MARGIN + 20, below)
    for number, name in enumerate(report.contributions, 1):
        parts.append(text(_MARGIN + 20, below + 40 + _LINE * number, f"{number}  {name}"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _about(report: Inspection) -> str:
    what = "the weights themselves" if report.base is None else f"differences from {report.base}"
    return f"Cosines between contributions ({what}), per group of layers"


def _square(group: Group, left: int, top: int, cell: int, numbered: bool) -> list[str]:
    conflict = "all zero" if group.conflict is None else f"conflict {group.conflict:.2f}"
    parts = [text(left, top - 22, group.name, "title"), text(left, top - 7, conflict)]
    for i, row in enumerate(group.cosines):
        parts.append(text(left - 10, top + i * cell + cell // 2 + 4, str(i + 1), "number"))
        for j, cosine in enumerate(row):
            x, y = left + j * cell, top + i * cell
            red, green, blue = colour_of(cosine)
            fill = f"#{red:02x}{green:02x}{blue:02x}"
            said = "none" if cosine is None else f"{cosine:.3f}"
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill="{fill}">'
                f"<title>{safe(group.name)}: {i + 1} and {j + 1}: {said}</title></rect>"
            )
            if numbered and cosine is not None:
                parts.append(
                    text(
                        x + cell // 2, y + cell // 2 + 4, _short(cosine), f"cell {ink_on(*colour_of(cosine))}"
                    )
                )
    return parts


def _scale(left: int, top: int) -> list[str]:
    parts = []
    for step in range(41):
        red, green, blue = colour_of(step / 20 - 1)
        fill = f"#{red:02x}{green:02x}{blue:02x}"
        parts.append(f'<rect x="{left + 5 * step}" y="{top}" width="5" height="12" fill="{fill}"/>')
    labels = ((0, "-1"), (103, "0"), (205, "+1"))
    return parts + [text(left + x, top + 28, word, "number") for x, word in labels]


def colour_of(cosine: float | None) -> tuple[int, int, int]:
    if cosine is None:
        return _NONE
    end = _BLUE if cosine > 0 else _ORANGE
    red, green, blue = (round(w + (e - w) * abs(cosine)) for w, e in zip(_WHITE, end, strict=True))
    return red, green, blue


def ink_on(red: int, green: int, blue: int) -> str:
    """The class of text on a cell: white or black, whichever has the higher contrast (WCAG 2.2, 1.4.3)."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (red / 255, green / 255, blue / 255)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "on-light" if luminance > 0.179 else "on-dark"


def _short(cosine: float) -> str:
    """Two decimals without the zero before the point: ``.41``, ``-.07``, ``1``."""
    spelt = f"{round(cosine, 2) + 0.0:.2f}"  # a rounded -0.001 is 0, not -0
    return spelt[:-3] if spelt.endswith(".00") else spelt.replace("0.", ".", 1)
