"""What everybody did when in a simulated run: a Gantt chart of the coordinator, its rounds and every site.

A picture of an Outcome alone: the same Outcome gives the same bytes. Colours, hatches and shapes: timeline_looks.
"""

import datetime
import math
from collections import defaultdict

from console.screens.drawing import number, safe, shortened, text, width_of
from console.screens.lanes import Bar, in_lanes, joined
from console.screens.parts import length
from console.screens.time_axis import ticks
from console.screens.timeline_looks import (
    HATCHED,
    LINES,
    MARKS,
    PROMOTED,
    REJECTED,
    SAID,
    WORK,
    patterns,
    style,
    work_class,
)
from consortium.ids import Digest
from simulation.outcome import Happening, Outcome

COORDINATOR = "coordinator"
_MARGIN, _CHART, _NAMES_MAX, _COST = 20.0, 1000.0, 190.0, 84.0  # pixels
_LANE, _BAR, _MARK_ZONE, _FOOT = 12.0, 9.0, 8.0, 5.0
_SIZE, _LEGEND_STEP, _SAME_MARK = 12.0, 20.0, 5.0
_BOLD = 1.12  # times as wide as plain letters
_THIN = 0.8  # pixels that even the shortest stretch is given


def timeline(found: Outcome) -> str:
    """The picture as SVG."""
    return _Picture(found).drawn()


class _Picture:
    def __init__(self, found: Outcome) -> None:
        self._found = found
        self._hours = max(found.hours, 1e-9)
        self._sites = sorted(found.costs)
        places = (*self._sites, COORDINATOR)
        names = max((width_of(place, _SIZE) for place in places), default=0.0)
        self._left = _MARGIN + min(names, _NAMES_MAX) + 14.0
        self._right = self._left + _CHART
        self.width = self._right + _COST + _MARGIN
        self._at: dict[str, list[Happening]] = defaultdict(list)
        for one in found.happenings:
            self._at[one.place].append(one)
        self._parts: list[str] = []
        self._below = _MARGIN

    def drawn(self) -> str:
        self._head()
        self._legend()
        top = self._below
        self._below += 20.0
        behind = len(self._parts)
        self._rounds()
        self._row(COORDINATOR, "")
        self._rule("rule")
        for index, site in enumerate(self._sites):
            if index:
                self._rule("grid")
            self._row(site, _grouped(self._found.costs[site].gpu_hours))
        self._parts[behind:behind] = self._background(top)
        height = self._below + 22.0 + _MARGIN
        size = f'viewBox="0 0 {number(self.width)} {number(height)}" width="{number(self.width)}"'
        return (
            "\n".join(
                [
                    f'<svg xmlns="http://www.w3.org/2000/svg" {size} height="{number(height)}" role="img">',
                    f"<title>{safe(_title(self._found))}</title>",
                    f"<style>{style()}</style>",
                    patterns(),
                    f'<rect class="paper" width="{number(self.width)}" height="{number(height)}"/>',
                    *self._parts,
                    "</svg>",
                ]
            )
            + "\n"
        )

    def _x(self, at: float) -> float:
        share = (at - self._found.began_at) / (self._hours * 3600.0)
        return self._left + _CHART * min(1.0, max(0.0, share))

    def _head(self) -> None:
        room = self.width - 2 * _MARGIN
        self._below += 12.0
        self._parts.append(
            text(_MARGIN, self._below, shortened(_title(self._found), room, 15.0 * _BOLD), "title")
        )
        for line in _about(self._found):
            self._below += 18.0
            self._parts.append(text(_MARGIN, self._below, shortened(line, room, _SIZE), "quiet"))
        for line in self._found.violations[:3]:
            self._below += 18.0
            self._parts.append(
                text(_MARGIN, self._below, shortened(f"Violated: {line}", room, _SIZE * _BOLD), "bad")
            )
        self._below += 20.0

    def _legend(self) -> None:
        """What occurs here, in a fixed order, in as many lines as it takes."""
        seen = {_condition(one) or _fault(one) or one.kind for one in self._found.happenings}
        x = _MARGIN
        for kind in (*WORK, *HATCHED, *LINES, *MARKS, "promoted", "rejected"):
            if kind not in seen:
                continue
            word = SAID.get(kind, kind)
            room = 24.0 + width_of(word, _SIZE) + 14.0
            if x + room > self.width - _MARGIN and x > _MARGIN:
                x = _MARGIN
                self._below += _LEGEND_STEP
            self._parts += [_swatch(kind, x, self._below), text(x + 24.0, self._below + 4.0, word)]
            x += room
        self._below += 22.0

    def _background(self, top: float) -> list[str]:
        """Every other round in grey, the axis' lines, and its labels above and below."""
        parts = []
        for index, one in enumerate(self._spans(COORDINATOR, "round")):
            if index % 2:
                begin, end = self._x(one.at), self._x(one.until or one.at)
                parts.append(_box(begin, top + 20.0, end - begin, self._below - top - 20.0, "band"))
        parts.append(text(self._right + _COST, top + 12.0, "GPU-hours", "end quiet small"))
        for tick in ticks(self._hours, _CHART):
            x = self._left + _CHART * tick.hour / self._hours
            line = f"M{number(x)},{number(top + 18)}V{number(self._below + 4)}"
            parts.append(f'<path class="grid" d="{line}"/>')
            parts.append(text(x, top + 12.0, tick.label, "middle quiet small"))
            parts.append(text(x, self._below + 18.0, tick.label, "middle quiet small"))
        return parts

    def _spans(self, place: str, kind: str) -> list[Happening]:
        found = [one for one in self._at[place] if one.kind == kind and one.until is not None]
        return sorted(found, key=lambda one: (one.at, one.until or 0.0, one.subject))

    def _rounds(self) -> None:
        """A box for each round, and below a mark for each version."""
        top = self._below
        self._parts.append(text(_MARGIN, top + 13.0, "rounds", "quiet"))
        for one in self._spans(COORDINATOR, "round"):
            begin, end = self._x(one.at), self._x(one.until or one.at)
            name = one.subject.rpartition("/")[2]
            said = f"round {name}: {_span(self._found, one)}"
            self._parts.append(_box(begin, top, max(end - begin, _THIN), 18.0, "round", said))
            words = next((w for w in (f"round {name}", name) if width_of(w, 11.0) + 6.0 < end - begin), "")
            if words:
                self._parts.append(text((begin + end) / 2, top + 13.0, words, "middle small"))
        self._below += 24.0
        self._versions()
        self._below += 22.0

    def _versions(self) -> None:
        marks = sorted(
            (one for one in self._found.happenings if one.kind in ("promoted", "rejected")),
            key=lambda one: (one.at, one.subject),
        )
        self._parts.append(text(_MARGIN, self._below + 11.0, "versions", "quiet"))
        names = {made.digest: made.name for made in self._found.versions}
        places = [self._x(one.at) for one in marks]
        taken = 0.0  # up to where something stands
        for index, (one, x) in enumerate(zip(marks, places, strict=True)):
            shape = PROMOTED if one.kind == "promoted" else REJECTED
            version = names.get(Digest(one.subject), one.subject)
            said = f"{version} {one.kind} {_when(self._found, one.at)}{_because(one.detail)}"
            self._parts.append(_mark(x, self._below + 7.0, shape, one.kind, said))
            name = version.rpartition("/")[2]
            room = width_of(name, 11.0)
            following = places[index + 1] - 8.0 if index + 1 < len(places) else self.width - _MARGIN
            if x + 7.0 > taken and x + 7.0 + room < following:
                self._parts.append(text(x + 7.0, self._below + 11.0, name, "small"))
                taken = x + 7.0 + room + 3.0

    def _rule(self, look: str) -> None:
        line = f"M{number(_MARGIN)},{number(self._below)}H{number(self._right + _COST)}"
        self._parts.append(f'<path class="{look}" d="{line}"/>')

    def _row(self, place: str, cost: str) -> None:
        lanes = in_lanes(self._bars(place))
        height = _MARK_ZONE + max(1, len(lanes)) * _LANE + _FOOT
        top, middle = self._below, self._below + _MARK_ZONE + max(1, len(lanes)) * _LANE / 2
        self._conditions(place, top, height)
        for index, lane in enumerate(lanes):
            for bar in lane:
                thick = _BAR * WORK[bar.kind][2]
                y = top + _MARK_ZONE + index * _LANE + (_LANE - thick) / 2
                wide = max(bar.end - bar.begin, _THIN)
                self._parts.append(_box(bar.begin, y, wide, thick, work_class(bar.kind), bar.said))
        self._marks(place, top)
        name = shortened(place, _NAMES_MAX, _SIZE)
        self._parts.append(text(_MARGIN, middle + 4.0, name))
        if cost:
            self._parts.append(text(self._right + _COST, middle + 4.0, cost, "end quiet"))
        self._below += height

    def _bars(self, place: str) -> list[Bar]:
        return [self._bar(one) for one in self._at[place] if one.kind in WORK and one.until is not None]

    def _bar(self, one: Happening) -> Bar:
        about = f"{one.subject}: {one.kind}" if one.subject else one.kind
        said = f"{about} {_span(self._found, one)}{_because(one.detail)}"
        return Bar(self._x(one.at), self._x(one.until or one.at), one.kind, one.subject, said)

    def _conditions(self, place: str, top: float, height: float) -> None:
        spans: dict[str, list[Bar]] = defaultdict(list)
        for one in self._at[place]:
            if kind := _condition(one):
                spans[kind].append(self._bar(one)._replace(subject="", kind=kind))
        for kind in (*HATCHED, *LINES):
            for bar in joined(spans[kind]):
                wide = max(bar.end - bar.begin, _THIN)
                if kind in LINES:
                    y = top + height - 3.5
                    self._parts.append(_box(bar.begin, y, wide, 2.5, LINES[kind], bar.said))
                else:
                    fill = f"url(#{HATCHED[kind]})"
                    self._parts.append(_box(bar.begin, top + 1.0, wide, height - 2.0, "", bar.said, fill))

    def _marks(self, place: str, top: float) -> None:
        """A shape above the bars for each fault; those of one kind that would cover each other are one."""
        last: dict[str, float] = {}
        kept: list[tuple[float, Happening, int]] = []
        for one in sorted(self._at[place], key=lambda one: (one.at, one.kind, one.subject)):
            if not _fault(one):
                continue
            x = self._x(one.at)
            if x - last.get(one.kind, -1e9) < _SAME_MARK:
                index = next(n for n in reversed(range(len(kept))) if kept[n][1].kind == one.kind)
                kept[index] = (*kept[index][:2], kept[index][2] + 1)
                continue
            last[one.kind] = x
            kept.append((x, one, 1))
        for x, one, count in kept:
            more = f"; {count - 1} more here" if count > 1 else ""
            when = _when(self._found, one.at) if one.until is None else _span(self._found, one)
            said = f"{one.kind} {when}{_because(one.detail)}{more}"
            shape, look = MARKS[one.kind]
            self._parts.append(_mark(x, top + 5.0, shape, look, said))


def _condition(one: Happening) -> str:
    """What a place is in for a while; "" if this is something else."""
    if one.until is None:
        return ""
    if one.kind == "down":
        return "coordinator down" if one.place == COORDINATOR else "agent down"
    return one.kind if one.kind in (*HATCHED, *LINES) else ""


def _fault(one: Happening) -> str:
    """What gets a mark. The coordinator's row has its own crashes; how attempts end shows at their sites."""
    if one.place == COORDINATOR:
        return one.kind if one.kind in ("crash", "refused") else ""
    return one.kind if one.kind in MARKS else ""


def _title(found: Outcome) -> str:
    names = ", ".join(sorted({one.campaign for one in found.ended})) or "A simulation"
    count = len(found.costs)
    return f"{names}: {count} site{'' if count == 1 else 's'}, {found.weather} weather, seed {found.seed}"


def _about(found: Outcome) -> list[str]:
    day = datetime.datetime.fromtimestamp(found.began_at, datetime.UTC)
    spent = math.fsum(cost.gpu_hours for cost in found.costs.values())
    lines = [f"Simulated, from {day:%Y-%m-%d %H:%M} UTC; {_grouped(spent)} GPU-hours"]
    for one in found.ended:
        rounds = f"{one.rounds} round{'' if one.rounds == 1 else 's'} closed, {one.promoted} promoted"
        lines.append(
            f"{one.campaign}: {one.status} after {length(found.hours)}; {rounds}{_because(one.reason)}"
        )
    return lines


def _because(detail: str) -> str:
    return f": {detail}" if detail else ""


def _grouped(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _when(found: Outcome, at: float) -> str:
    return f"after {length((at - found.began_at) / 3600.0)}"


def _span(found: Outcome, one: Happening) -> str:
    return f"for {length(((one.until or one.at) - one.at) / 3600.0)}, {_when(found, one.at)}"


def _box(x: float, y: float, width: float, height: float, kind: str, said: str = "", fill: str = "") -> str:
    look = f' class="{kind}"' if kind else f' fill="{fill}"'
    place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    return f"<rect{look} {place}><title>{safe(said)}</title></rect>" if said else f"<rect{look} {place}/>"


def _mark(x: float, y: float, shape: str, kind: str, said: str = "") -> str:
    inner = f"<title>{safe(said)}</title></path>" if said else "</path>"
    return f'<path class="{kind}" transform="translate({number(x)},{number(y)})" d="{shape}">{inner}'


def _swatch(kind: str, x: float, y: float) -> str:
    if kind in WORK:
        thick = _BAR * WORK[kind][2]
        return _box(x, y - thick / 2, 18.0, thick, work_class(kind))
    if kind in LINES:
        return _box(x, y - 1.2, 18.0, 2.5, LINES[kind])
    if kind in HATCHED:
        return _box(x, y - 6.0, 18.0, 12.0, "", fill=f"url(#{HATCHED[kind]})")
    if kind in MARKS:
        shape, look = MARKS[kind]
        return _mark(x + 9.0, y, shape, look)
    return _mark(x + 9.0, y, PROMOTED if kind == "promoted" else REJECTED, kind)
