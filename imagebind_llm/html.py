"""Pages that need nothing beside them: one HTML file with its tables and figures inside, for a browser on any machine.

    page("A run", [("Result", [table(["split", "accuracy, %"], [["test", 96.0]]), figure(lines({"dev": (epochs, f1)}))])])

Text is escaped unless it is Html; figures are matplotlib's, drawn without its global state and embedded as SVG, so the
same numbers give the same bytes. Nothing here knows what the numbers mean.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

COLOURS = ("#3b6ea5", "#d1803c", "#5a9367", "#a8557f", "#7a6bb0", "#8a8a3c", "#4f9da6")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d9dee5 }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #e6eaef; vertical-align: top }
th { background: #f4f6f9; white-space: nowrap } td.number { text-align: right; white-space: nowrap }
caption, figcaption { caption-side: top; text-align: left; color: #55606e; font-size: .9rem; max-width: 60rem }
figure { margin: .8rem 0 } img { max-width: 100% } p { max-width: 60rem } .note { color: #55606e } code { font-size: .9em }
""".strip()
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style></head>
<body>
{body}
</body></html>
"""


class Html(str):
    """Text that is HTML already; every other string is escaped where it is placed."""


def text(value: object) -> Html:
    """A value as it is shown: Html as it is, floats with one decimal, None as a dash, anything else escaped."""
    if isinstance(value, Html):
        return value
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return Html("–")
    return Html(html.escape(f"{value:.1f}" if isinstance(value, float) else str(value)))


def paragraph(content: object, note: bool = False) -> Html:
    """One paragraph; `note` prints it as an aside."""
    return Html(f'<p class="note">{text(content)}</p>' if note else f"<p>{text(content)}</p>")


def link(target: str, content: object) -> Html:
    """A link to a file or an address."""
    return Html(f'<a href="{html.escape(target, quote=True)}">{text(content)}</a>')


def table(header: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "") -> Html:
    """A table; numbers stand on the right. Raises ValueError for a row of another width than the header."""
    lines = [f"<tr>{''.join(f'<th>{text(cell)}</th>' for cell in header)}</tr>"]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"expected {len(header)} cells ({' '.join(map(str, header))}), got {len(row)}: {row}")
        lines.append(f"<tr>{''.join(_cell(value) for value in row)}</tr>")
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return Html(f'<div class="scroll"><table>{title}{"".join(lines)}</table></div>')


def _cell(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f'<td class="number">{text(value)}</td>' if number else f"<td>{text(value)}</td>"


def figure(drawn: Figure, caption: str = "") -> Html:
    """A matplotlib figure, embedded as SVG; the caption is also what is read out where pictures are not shown."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):  # element names, and so the bytes, do not change from run to run
        drawn.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    shown = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    picture = f'<img alt="{html.escape(caption, quote=True)}" src="{data_url("image/svg+xml", buffer.getvalue())}">'
    return Html(f"<figure>{shown}{picture}</figure>")


def jpeg(picture: Image.Image) -> str:
    """A picture as an address that holds it, for `src` and `poster`."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return data_url("image/jpeg", buffer.getvalue())


def data_url(kind: str, content: bytes) -> str:
    """The address of a picture or clip that is inside the page; `kind` is its MIME type."""
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def page(title: str, sections: Iterable[tuple[str, Iterable[object]]], subtitle: str = "") -> str:
    """A whole page: (heading, parts) one after the other; a part that is not Html becomes a paragraph."""
    body = [f"<h1>{text(title)}</h1>", paragraph(subtitle, note=True) if subtitle else ""]
    for heading, parts in sections:
        body.append(f"<h2>{text(heading)}</h2>")
        body += [part if isinstance(part, Html) else paragraph(part) for part in parts]
    return PAGE.format(title=text(title), style=STYLE, body="\n".join(filter(None, body)))


# --- figures ----------------------------------------------------------------------------------------------------------


def lines(series: Mapping[str, tuple[ArrayLike, ArrayLike]], x: str = "", y: str = "", diagonal: bool = False) -> Figure:
    """Curves by name, each (xs, ys); `diagonal` adds the line y = x."""
    drawn, axes = _axes(6.4, 3.8, x, y)
    if diagonal:
        axes.plot([0, 1], [0, 1], color="#9aa3ad", linewidth=1, linestyle="--")
    for (name, (xs, ys)), colour in zip(series.items(), _colours(len(series)), strict=True):
        axes.plot(xs, ys, label=name, color=colour, marker="o" if np.size(xs) < 30 else None, markersize=3.5, linewidth=1.6)
    if len(series) > 1:
        axes.legend(frameon=False)
    return drawn


def bars(
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    y: str = "",
) -> Figure:
    """Groups of bars: one group a name, one bar a series; `intervals` draws (low, high) on the series it names."""
    drawn, axes = _axes(max(6.4, 0.16 * len(names) * (len(series) + 1)), 3.8, "", y)
    width = 0.8 / len(series)
    for i, (name, heights) in enumerate(series.items()):
        left = np.arange(len(names)) + (i - (len(series) - 1) / 2) * width
        axes.bar(left, heights, width, label=name, color=_colours(len(series))[i])
        if intervals and name in intervals:
            low, high = np.array(intervals[name], dtype=float).T
            error = np.clip([np.array(heights) - low, high - np.array(heights)], 0, None)
            axes.errorbar(left, heights, error, fmt="none", ecolor="#1c2430", elinewidth=1, capsize=2)
    axes.set_xticks(np.arange(len(names)), names, rotation=40 if max(map(len, names)) > 6 else 0, ha="right")
    if len(series) > 1:
        axes.legend(frameon=False, ncols=len(series), loc="lower left", bbox_to_anchor=(0, 1))
    return drawn


def heatmap(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], x: str = "", y: str = "") -> Figure:
    """A matrix as coloured cells with its numbers in them, zeros left out; colours are shares of each row's sum."""
    drawn, axes = _axes(2.2 + 0.36 * len(columns), 1.8 + 0.3 * len(rows), x, y)
    shares = values / np.maximum(values.sum(axis=1, keepdims=True), 1e-12)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if value:
            colour = "white" if shares[row, column] > 0.55 else "#1c2430"
            axes.text(column, row, f"{value:.1f}".removesuffix(".0"), ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(columns)), columns, rotation=50, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    return drawn


def raster(values: np.ndarray, width: float, x: str = "", y: str = "", ticks: Mapping[str, float] | None = None) -> Figure:
    """A picture of values (rows, columns), row 0 at the bottom; `width`: of its x axis, `ticks`: rows of the y axis by name."""
    drawn, axes = _axes(3.6, 2.4, x, y)
    axes.imshow(values, origin="lower", aspect="auto", cmap="magma", extent=(0, width, 0, len(values)))
    if ticks is not None:
        axes.set_yticks(list(ticks.values()), list(ticks))
    axes.grid(False)
    return drawn


def scatter(points: np.ndarray, groups: Sequence[str], order: Sequence[str]) -> Figure:
    """Points (n, 2), coloured by group; the axes of a projection have no unit, so none is drawn."""
    drawn, axes = _axes(8.2, 5.2, "", "")
    markers = "osD^v"
    for i, name in enumerate(order):
        own = points[np.array(groups) == name]
        colour = matplotlib.colormaps["tab20"](i % 20)
        axes.scatter(*own.T, s=18, color=colour, marker=markers[i % len(markers)], label=name, alpha=0.85, linewidths=0)
    axes.set_axis_off()
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


def _axes(width: float, height: float, x: str, y: str):
    drawn = Figure(figsize=(width, height))
    axes = drawn.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color="#e6eaef")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]
