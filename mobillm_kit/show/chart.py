"""How every chart looks, and the words that it carries for readers who do not see it.

Colours start from those of Okabe and Ito, the light ones darkened to stand on white too; markers, line styles and
labels say the same as the colours. A chart has a white ground, so that it can be read on a dark page as well.

Knows: matplotlib, and the look of a chart.  Knows nothing of: what is drawn.
Taught in: notebooks/09_comparison.ipynb
"""

import io
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias

from mobillm_kit.errors import extra

with extra("lab", "Figures need {}"):
    import matplotlib as mpl
    import matplotlib.style
    import pandas as pd
    import seaborn as sns
    from adjustText import adjust_text
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    from matplotlib.transforms import Bbox
    from scipy.optimize import isotonic_regression

P = ParamSpec("P")
Look: TypeAlias = tuple[str, str, Any]
"""Colour, marker, line style."""

_STYLE = mpl.rc_params_from_file(Path(__file__).with_suffix(".mplstyle"), use_default_template=False)
PAPER, INK, MUTED, GRID = (str(_STYLE[of]) for of in ("axes.facecolor", "text.color", "axes.edgecolor", "grid.color"))
"""Ground, letters, secondary letters and lines, grid. A page that wants a dark chart replaces these four in its SVG:
nothing else has these colours, and those of the data stand on dark as well."""

ON_LIGHT, ON_DARK = "#10151a", "#fdfdfd"
"""Letters on a coloured ground; not the page's own, which a dark page replaces."""

COLORS = (
    "#0072b2", "#d98a00", "#009e73", "#cc79a7", "#8f63d2", "#3a9bd9", "#8c6d31", "#7d8590", "#d55e00", "#7f9a00",
    "#b5179e", "#e0453a", "#6741d9",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "d")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1)))


class Chart(Figure):
    """A figure together with what it shows in words; a notebook displays it whether or not pyplot has been set up."""

    def __init__(self, *args: Any, alt: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alt = alt
        """One sentence or a few, for readers who do not see the figure."""

    def png(self) -> bytes:
        """The picture at 150 dots per inch; the same chart gives the same bytes."""
        return self._rendered("png", Software=None)

    def svg(self) -> str:
        """The picture as SVG, letters drawn as shapes so that it looks the same everywhere."""
        with mpl.rc_context({"svg.hashsalt": "mobillm_kit", "svg.fonttype": "path"}):
            return self._rendered("svg", Date=None, Creator=None).decode()

    def _rendered(self, kind: str, **metadata: None) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format=kind, dpi=150, metadata=metadata, bbox_inches="tight", pad_inches=0.15)
        return out.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, int | str]]:
        png = self.png()
        width, height = (int.from_bytes(png[at : at + 4]) for at in (16, 20))
        # 150 dots per inch, shown in the size of 100: sharp on dense screens as well
        return png, {"width": width * 2 // 3, "height": height * 2 // 3, "alt": self.alt}


def styled(draw: Callable[P, Chart]) -> Callable[P, Chart]:
    """Draw under this module's settings, whatever the user has set, and leave the user's as they are."""

    @wraps(draw)
    def _under_our_settings(*args: P.args, **kwargs: P.kwargs) -> Chart:
        with mpl.style.context(_STYLE, after_reset=True):
            return draw(*args, **kwargs)

    return _under_our_settings


def canvas(
    width: float, height: float, title: str, subtitle: str, alt: str, *,
    left: float = 0.09, right: float = 0.98, legend_above: bool = False,
) -> tuple[Chart, Axes]:  # fmt: skip
    """A chart with its words, and the axes to draw on; pyplot does not know of it, so it is freed with its last name.

    Args:
        width, height: inches.
        title, subtitle, alt: what the chart says, of what, and all of it in words.
        left, right: where the axes begin and end, as shares of the width; labels may need room beside them.
        legend_above: whether room for :func:`legend_above` is left between the titles and the axes.
    """
    chart = Chart(figsize=(width, height), facecolor=PAPER, alt=alt)
    FigureCanvasAgg(chart)
    axes = chart.subplots()
    chart.subplots_adjust(left=left, right=right, bottom=0.6 / height, top=1 - (1.0 if legend_above else 0.75) / height)
    top: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    rise = 25 if legend_above else 0
    axes.annotate(title, (0, 1), xytext=(0, 25 + rise), fontsize=13, fontweight="bold", **top)
    axes.annotate(subtitle, (0, 1), xytext=(0, 9 + rise), fontsize=9.5, color=MUTED, **top)
    return chart, axes


def legend_above(axes: Axes, handles: Sequence[Patch | Line2D]) -> None:
    """One line of keys between the titles and the axes."""
    anchor = (-0.01, 1.0)
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=anchor, ncols=len(handles), handlelength=1.2)


def method_look(place: int) -> Look:
    """Colour, marker and line style; 13 methods have their own colour."""
    return COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)], DASHES[place % len(DASHES)]


def lying_bars(axes: Axes, places: Sequence[float], names: Sequence[str], end: float, x_label: str) -> None:
    """The frame of bars that lie below each other, read from the top; the axis goes from 0 a little beyond ``end``."""
    axes.set_yticks(places, names)
    axes.set(ylim=(places[-1] + 0.6, -0.6), xlim=(0, 1.04 * end), xlabel=x_label)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def numbers_beside(axes: Axes, places: Sequence[float], numbers: Sequence[str], right: float, head: str = "") -> None:
    """A column of numbers that ends at ``right``, in widths of the axes; at a bar's end they would hide a mark."""
    across = axes.get_yaxis_transform()
    axes.text(right, places[0] - 0.62, head, ha="right", va="bottom", fontsize=9, color=MUTED, transform=across)
    for place, number in zip(places, numbers, strict=True):
        axes.text(right, place, number, ha="right", va="center", transform=across)


def mean_and_band(axes: Axes, points: Sequence[tuple[float, float]], look: Look) -> None:
    """A line through the mean of all y of an x, and a band from the lowest to the highest."""
    color, marker, dashes = look
    sns.lineplot(
        pd.DataFrame(points, columns=["x", "y"]), x="x", y="y", errorbar=("pi", 100), ax=axes, color=color,
        marker=marker, linewidth=1.8, markersize=6, markeredgecolor=PAPER, markeredgewidth=0.7,
        err_kws={"alpha": 0.16, "linewidth": 0}, ls=dashes, zorder=3,
    )  # fmt: skip


def plain_numbers(axis: Any, ticks: Sequence[float] | None = None) -> None:
    """Numbers along one axis of the axes without exponents, at ``ticks`` alone where they are given."""
    if ticks is not None:
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def label_points(axes: Axes, labels: Sequence[tuple[float, float, str]], avoid: Sequence[Bbox] = ()) -> None:
    """Write each label near its point, clear of all others, with a thin line to it where it does not touch it.

    The limits of the axes have to be final. The number of rounds is fixed, and no clock is asked: equal points give
    equal places. Labels also keep clear of what there is to ``avoid``, in data coordinates.
    """
    texts = [
        axes.text(x, y, text, fontsize=9.5, zorder=6, path_effects=[withStroke(linewidth=2.5, foreground=PAPER)])
        for x, y, text in labels
    ]
    dot = axes.figure.dpi / 72
    to_pixels, to_data = axes.transData, axes.transData.inverted()
    markers = [Bbox(to_pixels.transform([(x, y)] * 2)).padded(6 * dot).transformed(to_data) for x, y, _ in labels]
    adjust_text(
        texts, objects=[*markers, *avoid], ax=axes, iter_lim=300, expand=(1.05, 1.3), force_text=(0.3, 0.5),
        min_arrow_len=3 * dot, arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.8, "zorder": 2.5},
    )  # fmt: skip


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, Look | None]]) -> None:
    """A column of keys and labels right of the axes, each as near to its height as the others allow.

    The limits of the axes have to be final. An end without a look is that of a dotted level.
    """
    ends = sorted(ends, key=lambda end: end[0])
    to_axes = axes.transData + axes.transAxes.inverted()  # the scale may be any
    wanted = [float(to_axes.transform((axes.get_xlim()[0], y))[1]) for y, _, _ in ends]
    heights = spread_out(wanted, 13.5 * axes.figure.dpi / 72 / axes.get_window_extent().height, 0.0, 1.0)
    across: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
    for (y, label, look), start, at in zip(ends, wanted, heights, strict=True):
        if look is None:
            axes.plot([1.0, 1.035], [start, at], color=MUTED, lw=0.9, ls=(0, (1, 2)), **across)
            axes.text(1.045, at, f"{label} {y:.1f}", color=MUTED, va="center", fontsize=9, **across)
            continue
        color, marker, dashes = look
        key = {"color": color, "ls": dashes, "marker": marker, "markevery": [1], "mec": PAPER, "mew": 0.7}
        axes.plot([1.02, 1.05, 1.08], [at] * 3, lw=1.8, ms=6, **key, **across)
        axes.text(1.095, at, f"{label} {y:.1f}", va="center", fontsize=9.5, **across)


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least ``gap`` apart that are nearest to the wanted ones, in the least-squares sense.

    With p_i = q_i + i gap it is the isotonic regression of ``wanted_i - i gap``, where the wanted ones ascend; what
    does not fit between ``low`` and ``high`` starts at ``low`` and goes beyond it.
    """
    if not wanted:
        return []
    means = isotonic_regression([value - i * gap for i, value in enumerate(wanted)]).x
    # clipping the answer without limits gives the answer within limits
    highest = max(low, high - (len(wanted) - 1) * gap)
    return [min(max(float(mean), low), highest) + i * gap for i, mean in enumerate(means)]
