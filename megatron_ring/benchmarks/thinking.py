"""What of a response is scored: the text after its thinking."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def scored_text(response: str, opened: bool = False) -> str | None:
    """The text after the last `</think>`; None where the thinking never ends, so that there is no answer to score.

    Args:
        opened: the prompt has opened the thinking. A response without any thinking is scored whole.
    """
    _, close, after = response.rpartition(CLOSE)
    if close:
        return after.strip()
    return None if opened or response.lstrip().startswith(OPEN) else response
