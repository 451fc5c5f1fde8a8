"""The figures of the study of SFT epochs. A colour is a number of epochs, from few (light) to many (dark)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from megatron_ring.analysis.figures import GREEN, GREY, INK, STYLE, WIDTH_INCHES, smooth
from megatron_ring.analysis.study_figures import DPI, SMOOTHED, band
from megatron_ring.analysis.study_starts import Start, mean_points, pareto

Seeds = dict[int, list[Start]]


def entropy_figure(groups: Seeds) -> Figure:
    """Validation entropy and loss at the end of each epoch, one curve for each SFT run; rings: where RL starts."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.4), dpi=DPI, layout="constrained")
        for axes, title, place in zip(
            figure.subplots(1, 2), ("Validation entropy (nats)", "Validation loss"), (3, 2), strict=True
        ):
            for (count, starts), colour in _coloured(groups):
                at = [row[0] for row in starts[0].validation]
                band(axes, [[row[place] for row in start.validation] for start in starts], colour, _name(count), at)
                ends = [start.validation[-1][place] for start in starts]
                axes.plot([at[-1]] * len(ends), ends, color=colour, linestyle="none", marker="o", markersize=5,
                          markerfacecolor="none")  # fmt: skip
            _log_axis(axes, [count for count, _ in _by_count(groups)])
            axes.set_title(title)
            axes.set_xlabel("epoch of SFT")
            axes.set_ylim(bottom=0)
            if place == 3:
                axes.legend(loc="best")
        return figure


def rl_figure(groups: Seeds) -> Figure:
    """Reward, entropy and held-out pass@1 over the steps of RL, one curve for each start."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 5.4), dpi=DPI, layout="constrained")
        reward, entropy, rate, unused = (axes for line in figure.subplots(2, 2) for axes in line)
        unused.set_visible(False)
        for (count, starts), colour in _coloured(groups):
            band(reward, [smooth(start.reward, SMOOTHED) for start in starts], colour, _name(count))
            band(entropy, [smooth(start.entropy, SMOOTHED) for start in starts], colour, _name(count))
            curves = [[start.before, *(rate for _, rate in start.evaluations)] for start in starts]
            band(rate, curves, colour, _name(count), [0, *(step for step, _ in starts[0].evaluations)])
        for axes, title in ((reward, "Reward"), (entropy, "Entropy (nats)"), (rate, "Held-out pass@1")):
            axes.set_title(title)
            axes.set_xlabel("step of RL")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
            axes.set_ylim(bottom=0)
        rate.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        handles, labels = reward.get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower right", bbox_to_anchor=(0.98, 0.1), title="epochs of SFT")
        return figure


def front_figure(groups: Seeds) -> Figure:
    """Held-out pass@1 against SFT + RL tokens, a point for each (epochs, step of RL), means over seeds; the Pareto front."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 4.2), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        points = mean_points(groups)
        for (count, _), colour in _coloured(groups):
            at, rates = zip(*points[count], strict=True)
            axes.plot(at, rates, color=colour, marker="o", markersize=3.5, linewidth=0.8, label=_name(count))
            axes.plot(at[:1], rates[:1], color=colour, marker="o", markersize=7, markerfacecolor="white")
        front = pareto((count, tokens, rate) for count, found in points.items() for tokens, rate in found)
        axes.step([tokens for _, tokens, _ in front], [rate for _, _, rate in front], where="post", color=INK,
                  linewidth=1.2, linestyle=(0, (4, 2)), label="Pareto front")  # fmt: skip
        _finish_scores(axes, "Held-out pass@1 (mean over seeds; open: before RL)", "SFT tokens + RL tokens trained")
        return figure


def ratio_figure(groups: Seeds, spot: tuple[str, float] | None) -> Figure:
    """Held-out pass@1 against RL tokens / SFT tokens at each evaluation; the last ones large, with each seed small. `spot`:
    the number of epochs and the ratio of the sweet spot, if there is one."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 4.2), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        ends = []
        for (count, starts), colour in _coloured(groups):
            curves = [[(tokens / start.start.tokens, rate) for tokens, rate in start.scores()[1:]] for start in starts]
            mean = [tuple(sum(values) / len(values) for values in zip(*at, strict=True)) for at in zip(*curves, strict=True)]
            at, rates = zip(*mean, strict=True)
            axes.plot(at, rates, color=colour, marker="o", markersize=3, linewidth=0.8, label=_name(count))
            axes.plot([curve[-1][0] for curve in curves], [curve[-1][1] for curve in curves], color=colour, linestyle="none",
                      marker="o", markersize=4, alpha=0.5)  # fmt: skip
            axes.plot(at[-1:], rates[-1:], color=colour, marker="o", markersize=9)
            ends.append((at[-1], rates[-1]))
        ends.sort()
        axes.plot([at for at, _ in ends], [rate for _, rate in ends], color=GREY, linewidth=1.0, linestyle=":", zorder=1)
        if spot is not None:
            axes.axvline(spot[1], color=GREEN, linewidth=1.4, label=f"sweet spot, {spot[1]:.3g}")
        _finish_scores(axes, "Held-out pass@1 (large: after RL, small: each seed)", "RL tokens / SFT tokens")
        return figure


def _finish_scores(axes: Axes, title: str, label: str) -> None:
    axes.set_xscale("log")
    axes.set_title(title)
    axes.set_xlabel(label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(loc="best")


def _log_axis(axes: Axes, ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    shown: Callable[[float, int], str] = lambda value, _: f"{value:g}"  # noqa: E731
    axes.xaxis.set_major_formatter(FuncFormatter(shown))


def _by_count(groups: Seeds) -> list[tuple[int, list[Start]]]:
    counts = [start.epochs for start in next(iter(groups.values()))]
    return [(count, [s for starts in groups.values() for s in starts if s.epochs == count]) for count in counts]


def _coloured(groups: Seeds) -> list[tuple[tuple[int, list[Start]], str]]:
    """Each number of epochs with its starts and a colour, evenly from a map that everyone can tell apart."""
    found = _by_count(groups)
    colours = matplotlib.colormaps["viridis_r"]
    places = [0.12 + 0.85 * index / max(1, len(found) - 1) for index in range(len(found))]
    return [(item, matplotlib.colors.to_hex(colours(place))) for item, place in zip(found, places, strict=True)]


def _name(count: int) -> str:
    return f"{count} epoch{'s' if count > 1 else ''}"
