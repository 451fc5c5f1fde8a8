"""What went wrong with the machine, apart from what went wrong with a program."""

from __future__ import annotations


class MachineFailure(Exception):
    """A run could not be set up, or was ended by somebody else than the sandbox: it says nothing about the program.

    The message is one line. Whoever catches it tries again, a bounded number of times, and never takes it for an answer.
    """
