"""How a screen becomes a picture for the docs."""

import io
import re

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, RenderableType

# Without Rich's @font-face, which would make every reader of our docs call a foreign host.
_FORMAT = re.sub(r"\s*@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def to_svg(screen: RenderableType, title: str, width: int = 100) -> str:
    """The screen as an SVG terminal window of ``width`` columns; the same bytes for the same screen."""
    console = Console(
        record=True,
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
        _environ={},
    )
    console.print(screen)
    return console.export_svg(title=title, code_format=_FORMAT, unique_id="sprachbund")
