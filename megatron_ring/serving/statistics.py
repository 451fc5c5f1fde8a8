"""Counts and times of the server in Prometheus' text form."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)  # seconds


class Histogram:
    """Times in seconds, counted by upper bound."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> Iterator[str]:
        below = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_sum {self.total}"
        yield f"{name}_count {below}"


class Statistics:
    """Of all requests since the start."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.prompt_tokens = self.new_tokens = 0
        self.first_token, self.between_tokens, self.request = Histogram(), Histogram(), Histogram()

    def text(self, unfinished: int, cancelled: int, capacity: int, graphs: int) -> str:
        """A page for Prometheus.

        Args:
            unfinished, cancelled, capacity: choices under way, given up, and that may be under way.
            graphs: CUDA graphs that were captured.
        """
        lines = ["# HELP ring_requests_total Requests by path and status.", "# TYPE ring_requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'ring_requests_total{{path="{path}",status="{status}"}} {count}')
        for name, kind, help_, value in (
            ("ring_prompt_tokens_total", "counter", "Tokens of prompts taken.", self.prompt_tokens),
            ("ring_generated_tokens_total", "counter", "Tokens sampled and delivered.", self.new_tokens),
            ("ring_choices_cancelled_total", "counter", "Choices given up before they were finished.", cancelled),
            ("ring_choices_unfinished", "gauge", "Choices under way or waiting.", unfinished),
            ("ring_choices_capacity", "gauge", "Choices that may be under way or waiting.", capacity),
            ("ring_cuda_graphs_captured_total", "counter", "CUDA graphs that the listening process captured.", graphs),
        ):
            lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}", f"{name} {value}"]
        for name, help_, histogram in (
            ("ring_time_to_first_token_seconds", "From a request to its first token.", self.first_token),
            ("ring_time_between_tokens_seconds", "Between two deliveries of a choice.", self.between_tokens),
            ("ring_request_seconds", "From a request to the end of its answer.", self.request),
        ):
            lines += [f"# HELP {name} {help_}", f"# TYPE {name} histogram", *histogram.lines(name)]
        return "\n".join(lines) + "\n"
