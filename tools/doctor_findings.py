"""What doctor.py's probes are made of, and how they look at the machine without ever failing.

Only the standard library is imported at the top, and nothing newer than Python 3.8 is used: this runs where nothing is
installed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
OLDEST_PYTHON = (3, 11)
# What torchrun sets; a child with these would wait for other processes.
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


Status = Literal["ok", "missing", "broken", "unused"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: the item.
        value: what was found.
        status: "broken" is there but does not work; "unused" plays no part here, whether it is there or not.
        hint: the command that mends or installs it, "" where there is nothing to do.
        needed: the default path does not work while this is missing or broken.
    """

    name: str
    value: str
    status: Status
    hint: str = ""
    needed: bool = False

    @property
    def breaks(self) -> bool:
        """Whether the default path cannot work because of this."""
        return self.needed and self.status in ("missing", "broken")


@dataclass(frozen=True)
class Probe:
    """A function that looks. `name` and `needed` are used when it cannot answer; `in_child`: it imports torch."""

    section: str
    name: str
    look: Callable[[], Iterator[Finding]]
    in_child: bool = False
    needed: bool = False

    def findings(self) -> list[Finding]:
        """What it finds; that it failed is a finding too."""
        found = []
        try:
            for finding in self.look():
                found.append(finding)
        except Exception as error:  # whatever an odd system throws: the other probes must still run
            found.append(Finding(self.name, describe(error), "broken", needed=self.needed))
        return found


def describe(error: Exception) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[-1]}"


def ask(command: list[str], seconds: float = 30.0) -> tuple[str, str]:
    """Output of a command, and what went wrong: its last line on stderr, or how it ended; "" when all went well."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode(errors="replace"), f"no end after {seconds:.0f} s"
    except OSError as error:
        return "", str(error.strerror)
    output, complaints = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace").strip()
    if done.returncode == 0:
        return output or complaints, ""  # `java -version` answers on stderr
    if done.returncode < 0:
        return output, f"ended by signal {-done.returncode}"
    return output, complaints.splitlines()[-1].strip() if complaints else f"exit status {done.returncode}"


def python_command(*arguments: str) -> list[str]:
    """This interpreter, as isolated as this process is, for a child."""
    flags = [flag for flag, on in (("-I", sys.flags.isolated), ("-S", sys.flags.no_site)) if on]
    return [sys.executable, *flags, *arguments]


def installed(module: str) -> bool:
    """Whether a top-level module can be found; it is not imported."""
    return importlib.util.find_spec(module) is not None


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution; None where there is none, or only the remains of one."""
    try:
        return importlib.metadata.version(distribution)
    except (importlib.metadata.PackageNotFoundError, KeyError):
        return None
