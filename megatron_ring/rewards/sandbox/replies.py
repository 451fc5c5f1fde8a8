"""Replies of a solution's functions are data from a stranger: what would cost much to read never leaves the sandbox.

Reading a short line costs little whatever it holds. A longer one is first counted, then read in a run of its own, under
limits: keys that all hash alike, for one, take quadratic time. Only what that run could read is passed on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from megatron_ring.rewards.sandbox import guest_values
from megatron_ring.rewards.sandbox.images import Limits
from megatron_ring.rewards.sandbox.run import RunResult

SHORT = 1 << 14  # bytes
MAX_VALUES = 1 << 19
MAX_DEPTH = 200  # brackets; a nested list takes one for each level, any other container two
SECONDS = 2.0

_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_READ = "import sys, guest_values\nguest_values.loads(sys.stdin.buffer.readline())\n"


def checked_reply(result: RunResult, run_script: Callable[[str, Limits, bytes], RunResult]) -> RunResult:
    """The result as it is, or with an error for its first line where that is more than anybody should read.

    Args:
        run_script: runs a Python program with this source, under these limits, on this stdin.
    """
    line, complete, rest = result.stdout.partition(b"\n")
    if not complete or len(line) <= SHORT:
        return result
    problem = _structure(line)
    if not problem:
        reading = run_script(_READ, Limits(seconds=SECONDS), line + b"\n")
        if not reading.ok:
            problem = f"cannot be read ({reading.reason})"
    if not problem:
        return result
    reply = guest_values.dumps({"error": "ValueError", "message": f"the returned value {problem}"})
    return replace(result, stdout=reply + rest)


def _structure(line: bytes) -> str:
    """What is wrong with the number of its values or their depth; empty if nothing is. Takes linear time."""
    bare = _TEXT.sub(b"", line)
    # Every value but the first of a container has a comma before it, the first a bracket.
    if sum(map(bare.count, (b",", b"[", b"{"))) > MAX_VALUES:
        return f"holds more than {MAX_VALUES} values"
    depth = deepest = 0
    for bracket in re.sub(rb"[^\[\]{}]+", b"", bare):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return f"is nested more than {MAX_DEPTH} brackets deep" if deepest > MAX_DEPTH else ""
