"""The report's figures: records in, matplotlib figures out, drawn by the Agg canvas without pyplot's global state.

One look for all: Okabe–Ito colours (told apart by every common kind of colour blindness), 9 inches wide at 200 dpi, so
that type stays legible when shown at 1,200 pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from megatron_ring.analysis.comparison import Row
from megatron_ring.analysis.read_run import Epoch, Run

BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#9AA0A6", "#1C2024"
DOMAIN_COLOURS = (ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9")
WIDTH_INCHES, DPI = 9.0, 200
STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#E6E8EA",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": "#5C646D",
    "ytick.color": "#5C646D",
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "megatron_ring",
}


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes, without a date or version inside, so equal data give equal files."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def axes_grid(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, by row; `height` in inches."""
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, [axes for line in grid for axes in line]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving mean over `window` values (fewer at the ends); values that are not finite are skipped."""
    reach = window // 2
    result = []
    for index in range(len(values)):
        near = [value for value in values[max(0, index - reach) : index + reach + 1] if math.isfinite(value)]
        result.append(sum(near) / len(near) if near else math.nan)
    return result


def _curve(axes: Axes, steps: Sequence[float], values: Sequence[float], colour: str, label: str | None = None) -> None:
    """The raw values; for long runs they fade and a moving mean over a twentieth of the run is drawn on top."""
    window = len(values) // 20
    if window < 2:
        axes.plot(steps, values, color=colour, label=label, marker="o" if len(values) <= 40 else None, markersize=3)
        return
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(values, window), color=colour, label=label)


def _finish(axes: Axes, title: str, xlabel: str = "step", top: float | None = None) -> None:
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_ylim(bottom=0, top=top)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")


def _epoch_lines(axes: Axes, epochs: Sequence[Epoch]) -> None:
    """A thin line where each epoch ends, and its number above the panel (every second or fifth when they crowd)."""
    every = next((stride for stride in (1, 2, 5, 10) if len(epochs) / stride <= 12), 20)
    for index, epoch in enumerate(epochs, start=1):
        axes.axvline(epoch.step, color=GREY, linewidth=0.7, linestyle=":")
        if index % every == 0:
            place = axes.get_xaxis_transform()  # x in steps, y as a share of the panel's height
            number = {"transform": place, "ha": "center", "va": "bottom", "fontsize": 7, "color": "#5C646D"}
            axes.text(epoch.step, 1.005, f"{epoch.epoch:g}", number)


def pretraining_figure(run: Run) -> Figure:
    """Loss by step with its validations; load of the fullest and of the emptiest expert of the worst layer."""
    with matplotlib.rc_context(STYLE):
        figure, (loss, load) = axes_grid(1, 2, 3.6)
        _curve(loss, *run.series("loss"), BLUE, "training")
        steps, values = run.series("validation/loss")
        if steps:
            loss.plot(steps, values, color=INK, linestyle="none", marker="o", markersize=4.5, label="validation")
        _finish(loss, "Loss")
        loss.set_ylabel("nats per token")
        _curve(load, *run.series("router/load_max"), ORANGE, "fullest expert")
        _curve(load, *run.series("router/load_min"), BLUE, "emptiest expert")
        load.axhline(1.0, color=GREY, linewidth=0.8, linestyle="--")
        _finish(load, "Load over the layer's mean")
        return figure


def sft_figure(run: Run, epochs: Sequence[Epoch], chosen: str | None, band: tuple[float, float] | None) -> Figure:
    """SFT loss and entropy by step, validation at epoch ends, the band shaded and the chosen checkpoint marked."""
    with matplotlib.rc_context(STYLE):
        figure, (loss, entropy) = axes_grid(1, 2, 3.6)
        losses, entropies = [epoch.loss for epoch in epochs], [epoch.entropy for epoch in epochs]
        for axes, key, validation in ((loss, "loss", losses), (entropy, "entropy", entropies)):
            if axes is entropy and band is not None:
                axes.axhspan(*band, color=GREEN, alpha=0.15, linewidth=0, label=f"band {band[0]:g}–{band[1]:g}")
            _curve(axes, *run.series(key), BLUE, "training")
            _epoch_lines(axes, epochs)
            at = [epoch.step for epoch in epochs]
            if epochs:
                axes.plot(at, validation, color=INK, linestyle="none", marker="o", markersize=4.5, label="validation")
            for epoch, value in zip(epochs, validation, strict=True):
                if epoch.checkpoint == chosen:
                    ring: Any = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 2}
                    label = f"chosen: epoch {epoch.epoch:g}"
                    axes.plot([epoch.step], [value], color=ORANGE, linestyle="none", label=label, **ring)
            _finish(axes, key.capitalize(), "step (dotted: end of epoch)")
            axes.set_title(key.capitalize(), pad=16)  # clear of the epoch numbers
            axes.set_ylabel("nats per token")
        return figure


def rl_figure(run: Run) -> Figure:
    """Small multiples by RL step: reward, response length, gradient norm, tokens against Φ, throughput, entropy."""
    with matplotlib.rc_context(STYLE):
        figure, panels = axes_grid(3, 2, 8.0)
        reward, length, norm, tokens, throughput, entropy = panels
        for axes, key in ((reward, "reward/mean"), (length, "response_length/mean")):
            domains = run.domains(key)
            for domain, colour in zip(domains, DOMAIN_COLOURS * len(domains), strict=False):
                if len(domains) > 1:
                    _curve(axes, *run.series(f"{key}/{domain}"), colour, domain)
            _curve(axes, *run.series(key), BLUE, "all" if len(domains) > 1 else None)
        _curve(norm, *run.series("grad_norm"), BLUE)
        steps, generated = run.series("tokens/generated")
        tokens.plot(steps, generated, color=GREY, linewidth=1.0, label="generated")
        tokens.plot(*run.series("tokens/trained"), color=BLUE, linewidth=2.4, label="trained")
        tokens.plot(*run.series("tokens/budget"), color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)), label="budget Φ")
        _curve(throughput, *run.series("throughput/tokens_per_second"), BLUE)
        _curve(entropy, *run.series("entropy"), BLUE)
        titles = ("Mean reward", "Response length (tokens)", "Gradient norm", "Tokens per step")
        for axes, title in zip(panels, (*titles, "Throughput (tokens/s)", "Entropy (nats)"), strict=True):
            _finish(axes, title)
            if not axes.lines:
                axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=GREY)
        for axes in (tokens, throughput, length):
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        return figure


def evaluation_figure(rows: Sequence[Row]) -> Figure:
    """Pass rate before and after RL by domain, as points with their intervals."""
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = axes_grid(1, 1, 1.3 + 0.62 * len(rows))
        highest = 0.0
        for side, colour, marker, shift in (("before RL", GREY, "s", -0.14), ("after RL", BLUE, "o", 0.14)):
            label: str | None = side
            for position, row in enumerate(rows):
                estimate = row.before if side == "before RL" else row.after
                if estimate is None:
                    continue
                low, high = estimate.interval.low, estimate.interval.high
                highest = max(highest, high)
                look: Any = {"color": colour, "marker": marker, "markersize": 7, "capsize": 3.5, "elinewidth": 1.8}
                # Rounding may put the value a hair outside its interval; error bars must not be negative.
                error = [[max(0.0, estimate.value - low)], [max(0.0, high - estimate.value)]]
                axes.errorbar([estimate.value], [position + shift], xerr=error, label=label, linestyle="none", **look)
                label = None
        axes.set_yticks(range(len(rows)), [row.domain for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, min(1.0, max(0.1, highest * 1.1)))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_title("Pass@1 with 95 % intervals")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="upper right", bbox_to_anchor=(1.0, 1.18), ncols=2, borderaxespad=0)
        return figure
