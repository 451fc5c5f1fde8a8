"""Tensors of a published (Hugging Face `bailing_moe`) folder, checked before any is read."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_ring.checkpoint.fast_files import DirectReader, Scratch
from megatron_ring.checkpoint.hf_config import read_json
from megatron_ring.checkpoint.safetensors_stream import StoredTensor, read_header
from megatron_ring.checkpoint.tensor_rules import kept_dtype, published_shapes
from megatron_ring.config.model import ModelConfig
from megatron_ring.errors import UserError

ACCEPTED = (torch.bfloat16, torch.float32)
LISTED = 20  # problems that one message names; it says how many more there are
HEAD = "lm_head.weight"


def list_problems(problems: list[str]) -> str:
    """Problems as one line."""
    more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return "; ".join(problems[:LISTED]) + more


def _stored_tensors(folder: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """What the folder's safetensors files hold by name, and where they contradict their index or each other."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.exists():
        if single.exists():
            return read_header(single), []
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise UserError(
                f"{folder}: holds pickled weights (pytorch_model.bin), which can run any code when they are opened; "
                "only safetensors are read: convert them where you trust them"
            )
        raise UserError(f"{folder}: holds neither model.safetensors nor model.safetensors.index.json")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{index}: has no weight_map of file names")
    if single.exists() and single.name not in weight_map.values():
        raise UserError(f"{folder}: holds both model.safetensors and an index that does not name it; remove one of them")
    found: dict[str, StoredTensor] = {}
    problems = []
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise UserError(f"{index}: names {file}, which is not in this folder")
        if not (folder / file).exists():
            problems.append(f"{file} is missing, the index names it")
            continue
        for name, tensor in read_header(folder / file).items():
            if name in found:
                problems.append(f"{name} is duplicated: in {found[name].file.name} and in {file}")
            elif name not in weight_map:
                problems.append(f"{name} is in {file} but not in the index")
            elif weight_map[name] != file:
                problems.append(f"{name} is in {file}, the index says {weight_map[name]}")
            found[name] = tensor
    problems += [f"{name} is in the index but not in {file}" for name, file in weight_map.items() if name not in found]
    return found, problems


class PublishedTensors:
    """The tensors of a folder that holds `model`, each there once, of the right shape, bf16 or fp32.

    Call it with a name for the tensor as our model uses it, valid until the next call: with `norm_head` the head's columns
    are scaled to unit L2 norm over the vocabulary (+1e-7), as the published model does in each forward; here once.

    Args:
        folder: in Hugging Face layout.
        dtype: what tensors are converted to; None keeps what the file has.

    Raises:
        UserError: lists what is missing, unexpected, duplicated, or of a wrong shape or dtype, by name.
    """

    def __init__(self, folder: Path, model: ModelConfig, norm_head: bool, dtype: torch.dtype | None = None) -> None:
        self.folder, self.norm_head, self.dtype = folder, norm_head, dtype
        self.non_finite: list[str] = []
        self._open: DirectReader | None = None
        self._scratch = Scratch()
        self.stored, problems = _stored_tensors(folder)
        expected = published_shapes(model)
        problems += [f"{name} is missing" for name in expected if name not in self.stored]
        for name, tensor in self.stored.items():
            if name not in expected:
                problems.append(f"{name} is unexpected")
            elif tensor.shape != expected[name]:
                problems.append(f"{name} has shape {tensor.shape}, expected {expected[name]}")
            elif tensor.dtype not in ACCEPTED:
                problems.append(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, only bfloat16 and float32 are read")
        if problems:
            raise UserError(f"{folder}: {list_problems(problems)}")

    def dtype_of(self, name: str) -> torch.dtype:
        """What reading `name` will return."""
        return kept_dtype(name, self.dtype or self.stored[name].dtype)

    def __call__(self, name: str) -> torch.Tensor:
        stored = self.stored[name]
        if self._open is None or self._open.path != stored.file:
            self.close()
            self._open = DirectReader(stored.file)
        tensor = stored.read(self._open, self._scratch)
        low, high = tensor.aminmax()
        if not (low.isfinite() and high.isfinite()):
            self.non_finite.append(name)
        if name == HEAD and self.norm_head:
            tensor = normalise_head(tensor)
        return tensor.to(self.dtype_of(name))

    def close(self) -> None:
        """Close the file read last."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def check_finite(self) -> None:
        """Raises `UserError` naming the tensors read so far that hold infinities or NaNs."""
        if self.non_finite:
            bad = [f"{name} holds values that are not finite" for name in self.non_finite]
            raise UserError(f"{self.folder}: {list_problems(bad)}")


def normalise_head(weight_vh: torch.Tensor) -> torch.Tensor:
    """weight / (L2 norm of each column over the vocabulary + 1e-7), in place, fp32 arithmetic block by block."""
    squares = torch.zeros(weight_vh.shape[1], dtype=torch.float64)
    for block in weight_vh.split(8192):
        squares += block.double().square().sum(0)
    scale = squares.sqrt().float() + 1e-7
    for block in weight_vh.split(8192):
        block.copy_(block.float() / scale)
    return weight_vh
