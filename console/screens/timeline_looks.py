"""How each kind of happening looks in the picture of a simulated run.

Colours of Okabe and Ito's palette, which colour-blind readers tell apart; besides, waits are thin and work is thick,
closed windows and downtime are hatched in two directions, and every kind of fault has a shape of its own.
"""

#: Stretches of a job's way at a site: kind -> colour on white, colour on black, share of the bar's height.
WORK = {
    "queued": ("#d9b400", "#f0e442", 0.36),
    "staging": ("#56b4e9", "#56b4e9", 0.62),
    "running": ("#0072b2", "#2f95d6", 1.0),
    "uploading": ("#009e73", "#12b886", 0.62),
    "making": ("#555b64", "#5d6570", 1.0),
    "inspecting": ("#56b4e9", "#56b4e9", 0.62),
    "merging": ("#cc79a7", "#d98bb5", 1.0),
    "judging": ("#e69f00", "#e69f00", 1.0),
}
#: Stretches of a place as a whole: hatched behind its bars, or lines below them.
HATCHED = {"window closed": "closed", "outage": "down", "coordinator down": "down"}
LINES = {"partitioned": "partitioned", "agent down": "ink"}
SAID = {
    "partitioned": "cut off",
    "crash": "coordinator crashed",
    "outage": "site down",
    "hostile": "hostile message",
    "admin": "admin's wish",
}

#: Moments: kind -> the shape of a mark around 0,0 within 3 pixels, and its class.
MARKS = {
    "preempted": ("M-3.2,-2.6h6.4L0,3z", "vermilion"),
    "node lost": ("M-2.7,-2.7h5.4v5.4h-5.4z", "vermilion"),
    "agent killed": ("M-2.8,-2.8L2.8,2.8M2.8,-2.8L-2.8,2.8", "ink-line"),
    "crash": ("M-3.2,-3.2L3.2,3.2M3.2,-3.2L-3.2,3.2", "vermilion-line"),
    "torn write": ("M0,-3.4L3.4,0L0,3.4L-3.4,0z", "ink-line"),
    "disk full": ("M0,-3.4L3.4,0L0,3.4L-3.4,0z", "ink"),
    "clock jump": ("M-2.9,0a2.9,2.9 0 1,0 5.8,0a2.9,2.9 0 1,0 -5.8,0z", "ink-line"),
    "refused": ("M-3,0h6", "vermilion-line"),
    "hostile": ("M-3,0h6M0,-3v6", "vermilion-line"),
    "second agent": ("M-3,2.6h6L0,-3z", "ink"),
    "admin": ("M-2.7,-2.7h5.4v5.4h-5.4z", "ink-line"),
}
PROMOTED, REJECTED = "M0,-5L4.6,4h-9.2z", "M0,4L4.6,-5h-9.2z"


def style() -> str:
    """The sheet of the whole picture; light and dark follow the reader's page."""
    light = "\n".join(f"  .{work_class(kind)} {{ fill: {look[0]} }}" for kind, look in WORK.items())
    dark = " ".join(f".{work_class(kind)} {{ fill: {look[1]} }}" for kind, look in WORK.items())
    return f"""
  text {{ font: 12px ui-sans-serif, system-ui, sans-serif; fill: #1f2328 }}
  .title {{ font-weight: 600; font-size: 15px }} .quiet {{ fill: #59636e }} .small {{ font-size: 11px }}
  .end {{ text-anchor: end }} .middle {{ text-anchor: middle }} .bad {{ fill: #b3261e; font-weight: 600 }}
  .paper {{ fill: #ffffff }} .rule {{ stroke: #d1d9e0; stroke-width: 1 }} .grid {{ stroke: #e7ebef; stroke-width: 1 }}
  .band {{ fill: #f3f5f8 }} .round {{ fill: #dfe5ec; stroke: #ffffff; stroke-width: 1 }}
  .ink {{ fill: #1f2328 }} .ink-line {{ fill: none; stroke: #1f2328; stroke-width: 1.5 }}
  .vermilion {{ fill: #d55e00 }} .vermilion-line {{ fill: none; stroke: #d55e00; stroke-width: 1.6 }}
  .partitioned {{ fill: #d55e00 }} .promoted {{ fill: #009e73 }} .rejected {{ fill: #d55e00 }}
  .closed-line {{ stroke: #b5bec8; stroke-width: 1 }} .down-line {{ stroke: #4a525c; stroke-width: 1.6 }}
  .down-paper {{ fill: #d5dae0 }}
{light}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #e6edf3 }} .quiet {{ fill: #9198a1 }} .bad {{ fill: #ff7b72 }}
    .paper {{ fill: #0d1117 }} .rule {{ stroke: #3d444d }} .grid {{ stroke: #21262d }}
    .band {{ fill: #151b23 }} .round {{ fill: #2d3640; stroke: #0d1117 }}
    .ink {{ fill: #e6edf3 }} .ink-line {{ stroke: #e6edf3 }}
    .closed-line {{ stroke: #4b5561 }} .down-line {{ stroke: #aab4bf }} .down-paper {{ fill: #39424d }}
    {dark}
  }}
"""


def patterns() -> str:
    """Hatches: closed windows lean right, downtime leans left."""
    return (
        '<defs><pattern id="closed" width="6" height="6" patternUnits="userSpaceOnUse">'
        '<path class="closed-line" d="M-1,1l2,-2M0,6l6,-6M5,7l2,-2"/></pattern>'
        '<pattern id="down" width="5" height="5" patternUnits="userSpaceOnUse">'
        '<rect class="down-paper" width="5" height="5"/>'
        '<path class="down-line" d="M-1,4l2,2M0,0l5,5M4,-1l2,2"/></pattern></defs>'
    )


def work_class(kind: str) -> str:
    return f"w-{kind}"
