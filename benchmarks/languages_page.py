"""The page of the experiment on languages: means over seeds, paired intervals, tables and a picture."""

import html
import math
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import NamedTuple

from languages_runs import Result
from languages_variants import STANDARD, VARIANTS, Variant
from languages_world import LOW, SITES, Scale

from consortium.canonical import replace
from consortium.ids import Language

# Two-sided 95 % quantiles of Student's t, by degrees of freedom; beyond the last the normal's is near enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_T_LARGE = 1.96

INTRODUCTION = """\
# What a consortium gains, and by which settings: measured

Written by `python benchmarks/languages.py --seeds {seeds} --page docs/languages-results.md` on {date}.
{machine}.

Every variant trains on {tokens} tokens, from a base that was trained on {seed_tokens} tokens of public text.
{sites}.
Model: {model}.
Text is that of the [demo](demo-results.md), from django and gramps where pip put them; {low}.
Private and public text are of one kind, and the model is this one, unless a table says otherwise. Trainer, codecs,
merges, admission, gate and scores are the product's, called in one process of one thread.

**Bits per byte** of held-out text; lower is better. *mean* is over the languages, *worst* the highest of them.
*gain* says how much lower than the base's the mean is. *against FedAvg* is the difference of means to {standard} from
the same seed; above zero is worse. *least gain* is that of the language which gained least; below zero it lost. ± is
half of a 95 % interval of Student's t over seeds ({num_seeds} where all are done), paired by seed. Seeds draw weights
and order of text; held-out documents stay, so the interval says nothing about other text. *gate* says for how many
seeds the shipped gate would promote the result over the base.

![Gain over the base by variant, with intervals](pictures/languages.svg)
"""


class Estimate(NamedTuple):
    mean: float
    half: float | None  #: half of the interval; None of a single seed

    def text(self, digits: int, sign: bool = False) -> str:
        shown = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        return shown if self.half is None else f"{shown} ± {self.half:.{digits}f}"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean, with a 95 % interval of Student's t."""
    if len(values) < 2:
        return Estimate(statistics.fmean(values), None)
    freedom = len(values) - 1
    t = _T[freedom - 1] if freedom <= len(_T) else _T_LARGE
    return Estimate(statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values)))


class Table:
    """Results by variant and seed."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.by = {(one.variant, one.seed): one for one in results}
        self.seeds = sorted({one.seed for one in results})

    def of(self, variant: Variant) -> list[Result]:
        return [self.by[variant.name, seed] for seed in self.seeds if (variant.name, seed) in self.by]

    def paired(self, variant: Variant, other: Variant) -> list[tuple[Result, Result]]:
        return [
            (one, self.by[other.name, one.seed])
            for one in self.of(variant)
            if (other.name, one.seed) in self.by
        ]


def mean_of(result: Result) -> float:
    return statistics.fmean(result.bits_per_byte.values())


def least_gain(result: Result, base: Result) -> tuple[float, str]:
    """The least relative gain of a language over the base, and which it is."""
    return min(
        (1.0 - bits / base.bits_per_byte[language], language)
        for language, bits in result.bits_per_byte.items()
    )


def gain(result: Result, base: Result) -> float:
    return 1.0 - mean_of(result) / mean_of(base)


def base_of(variant: Variant) -> Variant:
    return next(
        one
        for one in VARIANTS
        if one.kind == "base" and (one.text, one.width) == (variant.text, variant.width)
    )


def standard_of(variant: Variant) -> Variant:
    """What a variant is compared with: the same text and width, all else as in the standard one."""
    wanted = _nameless(replace(STANDARD, text=variant.text, width=variant.width))
    return next(one for one in VARIANTS if _nameless(one) == wanted)


def _nameless(variant: Variant) -> Variant:
    return replace(variant, name="", group="", tier=1)


def page(results: Sequence[Result], scale: Scale) -> str:
    table = Table(results)
    lines = [_introduction(table, scale)]
    for group in dict.fromkeys(variant.group for variant in _ordered()):
        members = [one for one in _ordered() if one.group == group and table.of(one)]
        if members:
            lines += [f"## {group[0].upper()}{group[1:]}", "", *_rows(table, members), ""]
    lines += ["## Every language", "", *_languages(table), ""]
    return "\n".join(lines)


def _introduction(table: Table, scale: Scale) -> str:
    sequence = scale.batch_sequences * scale.sequence_tokens
    programs = f"Python {platform.python_version()}, torch {version('torch')}"
    packages = f"django {version('django')}, gramps {version('gramps')}"
    fewer = [f"of `{language}` a share of {share:g} is used" for language, share in LOW.items() if share < 1]
    return INTRODUCTION.format(
        seeds=" ".join(map(str, table.seeds)),
        num_seeds=len(table.seeds),
        date=datetime.now(UTC).strftime("%d %B %Y"),
        machine=f"{os.cpu_count()} cores, {platform.machine()}, {programs}, {packages}",
        tokens=f"{scale.steps * sequence * len(SITES):,}",
        seed_tokens=f"{scale.seed_steps * scale.seed_sequences * scale.sequence_tokens:,}",
        sites=", ".join(f"*{site}* has {' '.join(languages)}" for site, languages in SITES.items()),
        model=f"Llama, {scale.layers} layers of {scale.hidden}, vocabulary {scale.vocabulary}, "
        f"sequences of {scale.sequence_tokens} tokens, {scale.batch_sequences} a step and site, "
        f"{scale.steps} steps a site",
        low=f"two languages have little, `sq` because there is no more of it; {', '.join(fewer)}",
        standard=STANDARD.name,
    )


def _rows(table: Table, members: Sequence[Variant]) -> list[str]:
    head = ["variant", "mean", "worst", "gain over base", "against FedAvg", "least gain", "MB a site", "gate"]
    is_poison = any(one.attack != "no" or one.defence != "none" for one in members)
    if is_poison:
        head += ["honest let in", "poison let in", "rounds promoted"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for variant in members:
        found = table.of(variant)
        cells = [variant.name, estimate([mean_of(one) for one in found]).text(3)]
        cells.append(f"{statistics.fmean(max(one.bits_per_byte.values()) for one in found):.3f}")
        pairs = table.paired(variant, base_of(variant))
        cells.append(_percent([gain(*pair) for pair in pairs]) if variant.kind != "base" else "")
        others = table.paired(variant, standard_of(variant))
        differences = [mean_of(one) - mean_of(other) for one, other in others]
        cells.append(
            estimate(differences).text(4, sign=True)
            if differences and variant != standard_of(variant)
            else ""
        )
        cells.append(_least(pairs) if variant.kind != "base" else "")
        cells.append(f"{statistics.fmean(one.upload_bytes for one in found) / 1e6:.2f}")
        promoted = sum(bool(one.gate) for one in found)
        cells.append(f"{promoted} of {len(found)}" if variant.kind != "base" else "")
        if is_poison:
            cells += _poison_cells(variant, found)
        lines.append("| " + " | ".join(cells) + " |")
    extra = [(one, table.of(one)) for one in members if one.kind == "alone"]
    for variant, found in extra:
        mean = statistics.fmean(one.elsewhere for one in found if one.elsewhere is not None)
        note = f"*{variant.name}*: each language by the site that has it, which takes {len(SITES)} models; "
        lines += ["", f"{note}one of them alone has a mean of {mean:.3f} over all languages."]
    return lines


def _poison_cells(variant: Variant, found: Sequence[Result]) -> list[str]:
    good = sum(one.let_in - one.bad_let_in for one in found)
    offered = sum(one.offered - one.bad_offered for one in found)
    bad, bad_offered = sum(one.bad_let_in for one in found), sum(one.bad_offered for one in found)
    promoted, rounds = sum(one.promoted for one in found), sum(one.rounds for one in found)
    return [
        f"{good} of {offered}",
        f"{bad} of {bad_offered}" if bad_offered else "",
        f"{promoted} of {rounds}" if variant.defence != "none" else "",
    ]


def _percent(shares: Sequence[float]) -> str:
    return estimate([100 * share for share in shares]).text(2, sign=True) + " %"


def _least(pairs: Sequence[tuple[Result, Result]]) -> str:
    worst = [least_gain(*pair) for pair in pairs]
    names = sorted({language for _, language in worst})
    return f"{100 * statistics.fmean(share for share, _ in worst):+.1f} % ({', '.join(names)})"


def _languages(table: Table) -> list[str]:
    known = [one for one in _ordered() if table.of(one)]
    languages = sorted({language for one in known for language in table.of(one)[0].bits_per_byte})
    marked = [f"{language} (low)" if Language(language) in LOW else language for language in languages]
    lines = ["| variant | " + " | ".join(marked) + " |", "|---" * (len(languages) + 1) + "|"]
    for variant in known:
        found = table.of(variant)
        means = (statistics.fmean(one.bits_per_byte[language] for one in found) for language in languages)
        lines.append(f"| {variant.name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return lines


def _ordered() -> list[Variant]:
    """By group, in the order in which groups first appear; within one as they are listed."""
    groups = list(dict.fromkeys(variant.group for variant in VARIANTS))
    return sorted(VARIANTS, key=lambda variant: groups.index(variant.group))


# --- picture ------------------------------------------------------------------------------------------

_LEFT, _WIDTH, _LINE, _TOP = 270, 900, 19, 44
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f", "#bcbd22")


def picture(results: Sequence[Result]) -> str:
    """A row a variant: the gain over the base in per cent, with its interval; an SVG."""
    table = Table(results)
    rows: list[tuple[Variant, Estimate]] = []
    for variant in _ordered():
        pairs = table.paired(variant, base_of(variant))
        if pairs and variant.kind != "base":
            rows.append((variant, estimate([100 * gain(*pair) for pair in pairs])))
    groups = list(dict.fromkeys(variant.group for variant, _ in rows))
    low = min([0.0, *(one.mean - (one.half or 0.0) for _, one in rows)])
    low = max(low, -10.0)  # a wrecked model would squeeze all others; it is drawn at the edge
    high = max([1.0, *(one.mean + (one.half or 0.0) for _, one in rows)])

    def x(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - 20)

    height = _TOP + _LINE * (len(rows) + len(groups)) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="16">Bits per byte saved against the base, %, mean over languages '
        "(bar: 95 % interval over seeds)</text>",
    ]
    step = max(1, round((high - low) / 8))
    for tick in range(math.ceil(low / step) * step, math.floor(high) + 1, step):
        colour = "#333" if tick == 0 else "#ddd"
        parts.append(
            f'<line x1="{x(tick):.1f}" y1="{_TOP - 8}" x2="{x(tick):.1f}" y2="{height - 12}" stroke="{colour}"/>'
        )
        parts.append(
            f'<text x="{x(tick):.1f}" y="{_TOP - 12}" text-anchor="middle" fill="#555">{tick}</text>'
        )
    y, shown = _TOP + 4.0, ""
    for variant, one in rows:
        if variant.group != shown:
            shown = variant.group
            parts.append(f'<text x="8" y="{y + 8:.1f}" font-weight="bold">{html.escape(shown)}</text>')
            y += _LINE
        colour = _COLOURS[groups.index(shown) % len(_COLOURS)]
        name, half = html.escape(variant.name), one.half or 0.0
        is_off = one.mean < low
        label = f"{name} ({one.mean:.0f} %)" if is_off else name
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        parts.append(
            f'<line x1="{x(one.mean - half):.1f}" y1="{y:.1f}" x2="{x(one.mean + half):.1f}" y2="{y:.1f}" '
            f'stroke="{colour}" stroke-width="2"/>'
        )
        shape = "none" if is_off else colour
        parts.append(f'<circle cx="{x(one.mean):.1f}" cy="{y:.1f}" r="4" fill="{shape}" stroke="{colour}"/>')
        y += _LINE
    return "\n".join([*parts, "</svg>"]) + "\n"
