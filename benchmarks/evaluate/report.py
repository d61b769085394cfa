"""A comparison as a table, as sentences about weak groups, and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from demo.languages import Bounds

Results = dict[str, Any]

ORIGINAL = "original"
COLUMNS = {
    "r1": "R@1",
    "r5": "R@5",
    "top1": "top-1",
    "same_first": "first as the original's",
    "same_five": "of its first five",
}

# Of R@1, or of the accuracy: what a variant may lose in one group before it is told of.
MOST_LOSS = 0.02
# Shares are quotients of whole numbers: what is exactly as much is not more, whatever a float makes of it.
ROUNDING = 1e-9
# As the self-test of languages: a group below it is weak whatever the variant.
WEAK = Bounds().recall

# Okabe and Ito's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def table(found: Results) -> str:
    """One line a variant, in Markdown; means over the groups."""
    group_of, main = found["groups"], found["main"]
    shown = [name for name in COLUMNS if name in found["variants"][ORIGINAL]["mean"]]
    head = [found["model"], *(COLUMNS[n] for n in shown), "least cosine", f"weakest {group_of}", "most lost"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for variant, of in found["variants"].items():
        shares = [f"{100 * of['mean'][name]:.2f} %" for name in shown]
        weakest = min(of["by_group"], key=lambda group: of["by_group"][group][main])
        worst = f"{weakest}, {100 * of['by_group'][weakest][main]:.1f} %"
        group, loss = largest_loss(found, variant)
        lost = f"{100 * loss:+.1f} points ({group})" if loss else "none"
        cells = [variant, *shares, _cosine(of), worst, "" if variant == ORIGINAL else lost]
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    count = len(found["variants"][ORIGINAL]["by_group"])
    means = f"; means over {count} {group_of}s" if count > 1 else ""
    what = f"{found['what'][0].upper()}{found['what'][1:]}{means}."
    return "\n".join([*lines, "", what]) + "\n"


def _cosine(of: Mapping[str, Any]) -> str:
    return f"{of['least_cosine']:.6f}" if "least_cosine" in of else ""


def changes(found: Results, variant: str) -> dict[str, float]:
    """By group: how much more of it a variant finds than the original."""
    main, original = found["main"], found["variants"][ORIGINAL]["by_group"]
    return {
        group: of[main] - original[group][main]
        for group, of in found["variants"][variant]["by_group"].items()
    }


def largest_loss(found: Results, variant: str) -> tuple[str, float]:
    """The group in which a variant loses most against the original, and how much: below 0, or 0."""
    of = changes(found, variant)
    group = min(of, key=lambda name: of[name])
    return group, min(of[group], 0.0)


def weak(found: Results) -> Iterator[str]:
    """In words, each group that is weak in the original, and each that a variant weakens."""
    main = found["main"]
    for group, of in found["variants"][ORIGINAL]["by_group"].items():
        if of[main] < WEAK:
            reached = f"{COLUMNS[main]} {100 * of[main]:.1f} %"
            yield f"{group}: {reached} in the original, should be >= {100 * WEAK:.0f} %"
    for variant in found["variants"]:
        for group, change in changes(found, variant).items():
            if change < -MOST_LOSS - ROUNDING:
                yield f"{group}: {variant} loses {-100 * change:.1f} points of {COLUMNS[main]}"


def draw(found: Results, path: Path) -> None:
    """By group: what the original finds, and what each variant finds more or less."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    original = found["variants"][ORIGINAL]["by_group"]
    main = found["main"]
    groups = sorted(original, key=lambda group: (-original[group][main], group))
    variants = [variant for variant in found["variants"] if variant != ORIGINAL]
    places = range(len(groups))
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        above.bar(places, [100 * original[group][main] for group in groups], color="#999999")
        above.set_ylabel(f"{COLUMNS[main]} of the original, %")
        above.set_title(f"{found['model']}: {found['what']}")
        for number, variant in enumerate(variants):
            of, colour = changes(found, variant), COLOURS[number % len(COLOURS)]
            beside = (number - (len(variants) - 1) / 2) * 0.8 / len(variants)
            at = [place + beside for place in places]
            below.bar(
                at, [100 * of[group] for group in groups], 0.8 / len(variants), color=colour, label=variant
            )
        below.axhline(0, color="black", linewidth=0.8)
        below.set_ylabel("variant less original,\npoints")
        below.set_xticks(list(places), groups, rotation=60, ha="right")
        if variants:
            below.legend(frameon=False, ncols=len(variants))
        figure.savefig(path, dpi=110)
