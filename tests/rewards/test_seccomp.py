"""The filter of system calls, run as the kernel runs it: what is refused is what the table says."""

from __future__ import annotations

import struct

import pytest

from megatron_ring.rewards.sandbox import seccomp

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
OTHER_PROCESSOR = 0x40000003  # i386


def verdict(program: bytes, number: int, architecture: int, flags: int = 0) -> int:
    """What the classic BPF program returns for a call with this number and first argument."""
    steps = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    memory, loaded, at = {0: number, 4: architecture, 16: flags}, 0, 0
    while True:
        code, if_true, if_false, operand = steps[at]
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            loaded, at = memory[operand], at + 1
        else:
            holds = {0x15: loaded == operand, 0x35: loaded >= operand, 0x45: loaded & operand != 0}[code]
            at += 1 + (if_true if holds else if_false)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_is_refused_is_what_the_table_says(machine: str) -> None:
    audit, column, clone = seccomp._ARCHITECTURES[machine]
    program = seccomp.build_filter(machine)
    refused = {numbers[column] for numbers in seccomp._REFUSED.values()} - {None}
    assert len(refused) > 80
    for number in range(1024):
        expected = EPERM if number in refused else ENOSYS if number == 435 else ALLOW
        assert verdict(program, number, audit) == expected, number
        assert verdict(program, number, OTHER_PROCESSOR) == KILL
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(program, clone, audit, flag | 17) == EPERM
    assert verdict(program, clone, audit, 0x003D0F00) == ALLOW  # a thread
    x32 = {verdict(program, 0x40000000 | number, audit) for number in range(600)}
    assert x32 == ({EPERM} if machine == "x86_64" else {ALLOW})
