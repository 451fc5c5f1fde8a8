"""Several files of one process, and tensors between memory and archive: what is written is what torch itself reads."""

from __future__ import annotations

import io
import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.checkpoint.fast_files import DirectReader
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.errors import UserError
from tests.checkpoint.test_saving import steps, trainer_for

TENSORS = (
    torch.randn(5_000_003),  # more than a block
    torch.randn(7, 9).bfloat16(),
    torch.tensor(3.5),
    torch.empty(0, 3),
    torch.randn(40, 30).t()[3:9],
    torch.arange(10)[4:6],
)


def test_an_archive_is_what_torch_reads_and_tells_where_its_tensor_lies(tmp_path: Path) -> None:
    from megatron_ring.checkpoint.fast_files import DirectWriter
    from megatron_ring.checkpoint.reading import FRONT, saved_storage, stored_content
    from megatron_ring.checkpoint.sharded import archive

    for tensor in TENSORS:
        with DirectWriter(tmp_path / "file") as file:
            file.write(b"before")
            archive(tensor, file)
        written = (tmp_path / "file").read_bytes().removeprefix(b"before")
        assert torch.equal(torch.load(io.BytesIO(written), weights_only=True), tensor)
        begin, size = saved_storage(memoryview(written))
        assert size == tensor.nbytes and stored_content(written[:FRONT]) == begin
        theirs = io.BytesIO()
        torch.save(tensor.clone(), theirs)  # as earlier versions wrote it
        assert stored_content(theirs.getvalue()[:FRONT]) == saved_storage(theirs.getbuffer())[0]
    assert (
        stored_content(b"") is None and stored_content(b"PK\3\4" + bytes(40)) is None and stored_content(b"PK\3\4") is None
    )


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=4))
def test_a_box_is_one_run_where_its_elements_follow_each_other(dimensions: list[tuple[int, int, int]]) -> None:
    from megatron_ring.checkpoint.tensor_rules import Box

    outer = Box((5,) * len(dimensions), tuple(before + size + behind for before, size, behind in dimensions))
    inner = Box(tuple(5 + before for before, _, _ in dimensions), tuple(size for _, size, _ in dimensions))
    numbers = torch.arange(torch.Size(outer.size).numel()).view(outer.size)[inner.slices(outer)].flatten().tolist()
    follow = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert inner.run_in(outer) == (numbers[0] if follow else None)


class OpenUntilOneCannotBe(DirectReader):
    """Its thread goes on once another one could not open a file, so that the first is not done with its own before."""

    refused = threading.Event()

    def __init__(self, *about: Any) -> None:
        try:
            super().__init__(*about)
        except OSError:
            self.refused.set()
            raise
        self.refused.wait(60)


def save_and_load_in_threes(folder: Path) -> tuple[list[str], bool, list[str]]:
    """Names of the files; whether a run continues from them bit by bit; what is said of each where its middle is damaged."""
    from megatron_ring.checkpoint import loading, reading, sharded
    from megatron_ring.checkpoint.saving import CheckpointSaver

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "files_at_once", lambda size: 3)
        patch.setattr(loading, "files_at_once", lambda size: 3)
        trainer, here = trainer_for(ParallelConfig())
        steps(trainer, here, 0, 1)
        saver = CheckpointSaver(folder, here)
        whole = saver.save(1, trainer.model, trainer.optimizer, {}, last=True)
        assert not saver.busy and not saver._staging._buffers  # whole already, and no host memory was taken
        undisturbed = steps(trainer, here, 1, 2)
        loading.load_checkpoint(whole, trainer.model, here, trainer.optimizer)
        same = steps(trainer, here, 1, 2) == undisturbed
        files, refused = sorted(whole.glob("*.distcp")), []
        for path in files:
            content = path.read_bytes()
            path.write_bytes(
                content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
            )
            with pytest.raises(UserError) as error:
                loading.load_checkpoint(whole, trainer.model, here, trainer.optimizer)
            refused.append(str(error.value))
            path.write_bytes(content)
        patch.setattr(reading, "DirectReader", OpenUntilOneCannotBe)
        limits, free = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)  # the lowest number that is free
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limits[1]))  # room for one file more, and threads want three
        try:
            with pytest.raises(UserError, match="Too many open files"):
                loading.load_checkpoint(whole, trainer.model, here, trainer.optimizer)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    return [path.name for path in files], same, refused


@pytest.mark.distributed
def test_a_process_writes_and_reads_several_files(run_on, tmp_path: Path) -> None:
    ((files, same, refused),) = run_on(1, save_and_load_in_threes, tmp_path)
    assert files == ["__0_0.distcp", "__0_1.distcp", "__0_2.distcp"] and same
    assert [message.rpartition(": ")[2] for message in refused] == files and all("damaged" in message for message in refused)


def test_files_get_equal_shares_in_the_given_order() -> None:
    from megatron_ring.checkpoint.sharded import shared_out, size_of, write_item
    from megatron_ring.checkpoint.tensor_rules import Box

    items = [write_item(str(n), (size,), Box.whole((size,)), torch.float32) for n, size in enumerate((1, 50, 3, 20, 30, 2))]
    files = shared_out(items, 2)
    assert [[item.index.fqn for item in file] for file in files] == [["1", "2"], ["0", "3", "4", "5"]]
    assert [sum(map(size_of, file)) for file in files] == [4 * 53, 4 * 53]
    assert shared_out([], 1) == [[]]
