"""Hugging Face folder -> checkpoint and back, one tensor at a time: no model is built, no GPU or process group needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from megatron_ring.checkpoint.hf_config import EXPERT_BIAS, config_json, parse_config, read_config, read_json
from megatron_ring.checkpoint.hf_folder import copy_others, copy_tokenizer, write_code
from megatron_ring.checkpoint.hf_tensors import PublishedTensors, list_problems
from megatron_ring.checkpoint.manifest import make_durable, model_config_of, write_manifest
from megatron_ring.checkpoint.reading import CheckpointReader
from megatron_ring.checkpoint.safetensors_stream import Announced, write_shards
from megatron_ring.checkpoint.saving import VERSIONS, publish
from megatron_ring.checkpoint.sharded import ShardWriter, plan_files, write_item, write_plain_files
from megatron_ring.checkpoint.tensor_rules import Rule, kept_dtype, rules_for
from megatron_ring.config.model import ModelConfig
from megatron_ring.errors import UserError

FILE_BYTES = 4 * 10**9  # of a checkpoint's files: processes share reading and checking them
SHARD_BYTES = 5 * 10**9
LEFT_OUT = ("rope_parameters", "dtype", "auto_map", EXPERT_BIAS)  # of `like`: said by the model, or under other names
# Settings of config.json that say nothing about the weights.
LEFT_TO_LIKE = ("attention_dropout", "embedding_dropout", "output_dropout", "output_router_logits", "use_cache")

OnBytes = Callable[[int], None]


def unfinished(out: Path) -> Path:
    """Where `out` is written until it is whole."""
    return out.with_name(f".{out.name}.tmp")


@contextmanager
def whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write into, that becomes `out` at the end and vanishes on any failure.

    Raises:
        UserError: `out` exists, or cannot be written.
    """
    if out.exists():
        raise UserError(f"--out {out}: exists already; remove it or choose another folder")
    work = unfinished(out)
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        yield work
        publish(work, out)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror or error}; nothing was written") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _FromPublished(DefaultSavePlanner):
    """Resolves a write item to the published tensor's content, at the moment it is written."""

    def __init__(self, source: PublishedTensors, rules: dict[tuple[str, tuple[int, ...]], Rule], on_bytes: OnBytes) -> None:
        super().__init__()
        self._source, self._rules, self._on_bytes = source, rules, on_bytes

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        assert write_item.index.offset is not None
        rule = self._rules[write_item.index.fqn, tuple(write_item.index.offset)]
        self._on_bytes(self._source.stored[rule.source].end - self._source.stored[rule.source].begin)
        return rule.to_ours(self._source(rule.source))


def import_folder(hf: Path, out: Path, dtype: torch.dtype | None = None, on_bytes: OnBytes = lambda _: None) -> ModelConfig:
    """Write the checkpoint `out` (weights alone) from a published folder.

    Args:
        dtype: of the weights; None keeps each tensor's.
        on_bytes: told the size of each source tensor as it is read.

    Raises:
        UserError: anything wrong with the folder, by name; nothing is written then.
    """
    model, norm_head = read_config(hf)
    source = PublishedTensors(hf, model, norm_head, dtype)
    # In the order of the files, so that the disk is read once from end to end.
    rules = sorted(rules_for(model), key=lambda rule: (source.stored[rule.source].file, source.stored[rule.source].begin))
    plans, room = [SavePlan([])], FILE_BYTES
    for rule in rules:
        size = prod(rule.shape) * source.dtype_of(rule.source).itemsize
        if plans[-1].items and size > room:
            plans.append(SavePlan([]))
            room = FILE_BYTES
        plans[-1].items.append(write_item(rule.target, rule.target_shape, rule.box, source.dtype_of(rule.source)))
        room -= size
    with whole_or_nothing(out) as work:
        writer = ShardWriter(work)
        plans, metadata = plan_files(writer, plans)
        planner = _FromPublished(source, {(rule.target, rule.box.offset): rule for rule in rules}, on_bytes)
        results = [writer.write_data(plan, planner).value() for plan in plans]
        source.close()
        source.check_finite()
        writer.finish(metadata, results)
        write_plain_files(work)
        write_manifest(work, model, 0, {}, {}, writer.checksums, VERSIONS)
    return model


def bytes_to_import(hf: Path) -> int:
    """Bytes of tensors in a published folder. Raises `UserError` as `import_folder`."""
    model, norm_head = read_config(hf)
    return sum(tensor.end - tensor.begin for tensor in PublishedTensors(hf, model, norm_head).stored.values())


def bytes_to_export(checkpoint: Path, dtype: torch.dtype | None = None) -> int:
    """Bytes of tensors that exporting a checkpoint will write. Raises `UserError` as `export_checkpoint`."""
    rules, reader = rules_for(model_config_of(checkpoint)), CheckpointReader(checkpoint)
    if problems := reader.problems(rules):
        raise UserError(f"{checkpoint}: {list_problems(problems)}")
    return sum(prod(rule.shape) * kept_dtype(rule.source, dtype or reader.dtype_of(rule.target)).itemsize for rule in rules)


def export_checkpoint(
    checkpoint: Path, out: Path, *, like: Path | None = None, tokenizer: Path | None = None,
    special_ids: tuple[int, int] | None = None, stop_ids: Sequence[int] = (), dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES, on_bytes: OnBytes = lambda _: None,
) -> ModelConfig:  # fmt: skip
    """Write a published folder from a checkpoint of any layout.

    Args:
        like: a published folder whose other files are taken (tokenizer, licence), and what its config.json says beyond the
            model's shape. Its modelling code is replaced by ours.
        tokenizer: a folder whose tokenizer is taken instead of that of `like`, whole.
        dtype: of the tensors; None keeps the checkpoint's.
        special_ids: eos and pad ids of that tokenizer, for config.json and generation_config.json; default: those of
            `like`, else none.
        stop_ids: tokens that end a response besides eos, as `SamplingConfig.stop_token_ids`, for generation_config.json.
        on_bytes: told the size of each tensor as it is written.

    Raises:
        UserError: a damaged or incomplete checkpoint, `out` exists, the disk is full; nothing is written then.
    """
    model = model_config_of(checkpoint)
    reader, rules = CheckpointReader(checkpoint), rules_for(model)
    problems = reader.problems(rules)
    if problems:
        raise UserError(f"{checkpoint}: {list_problems(problems)}")
    announced = [
        Announced(rule.source, kept_dtype(rule.source, dtype or reader.dtype_of(rule.target)), rule.shape) for rule in rules
    ]
    config = _exported_config(model, announced[0].dtype, like, special_ids)
    generation = {}  # a reward model generates nothing
    if model.head == "vocabulary":
        generation = _generation_config(like, config, special_ids, stop_ids, model.vocab_size)
    with whole_or_nothing(out) as work:
        contents = (
            rule.to_published(reader.read(rule.target, rule.box)).to(tensor.dtype)
            for rule, tensor in zip(rules, announced, strict=True)
        )
        write_shards(work, announced, contents, shard_bytes, on_bytes)
        reader.close()
        if like is not None:
            copy_others(like, work, with_tokenizer=tokenizer is None)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, work)
        write_code(work, model.head)
        (work / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        if generation:
            (work / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
        for path in work.iterdir():
            make_durable(path)
    return model


def _exported_config(
    model: ModelConfig, dtype: torch.dtype, like: Path | None, special_ids: tuple[int, int] | None
) -> dict[str, Any]:
    """config.json: what `like` says, then the model's shape on top of it."""
    config = {} if like is None else read_json(like / "config.json")
    if like is not None and config.get("model_type") != "bailing_moe":
        raise UserError(f"--like {like}: model_type is {config.get('model_type')!r}, not 'bailing_moe'")
    eos, pad = special_ids or (config.get("eos_token_id"), config.get("pad_token_id"))
    _check_tokens({"eos_token_id": eos, "pad_token_id": pad}, model.vocab_size)
    config = {key: value for key, value in config.items() if key not in LEFT_OUT}
    ours = config_json(model, dtype, eos, pad)
    if like is not None:
        ours = {key: value for key, value in ours.items() if key not in LEFT_TO_LIKE or key not in config}
        parse_config({**config, **ours}, like / "config.json")  # what the model lacks would be said of it
    return {**config, **ours}


def _check_tokens(tokens: dict[str, Any], vocab_size: int) -> None:
    """Raise `UserError` for special tokens, one or a list by setting, that the model cannot draw."""
    for name, value in tokens.items():
        for token in value if isinstance(value, list) else [value]:
            if token is None:
                continue
            if isinstance(token, bool) or not isinstance(token, int):
                raise UserError(f"{name} is {json.dumps(token)}, not a token's id")
            if not 0 <= token < vocab_size:
                raise UserError(f"{name} {token} is outside the model's vocabulary of {vocab_size:,} tokens")


def _generation_config(
    like: Path | None, config: dict[str, Any], special_ids: tuple[int, int] | None, stop_ids: Sequence[int], vocab_size: int
) -> dict[str, Any]:
    """generation_config.json: that of `like`, with the special ids of the tokenizer that goes with it, and with what else
    ends a response."""
    path = None if like is None else like / "generation_config.json"
    found = read_json(path) if path is not None and path.exists() else {}
    if special_ids is not None or not found:
        special = {name: config[name] for name in ("eos_token_id", "pad_token_id") if config[name] is not None}
        if special_ids is not None:
            found.pop("bos_token_id", None)  # of another tokenizer
        found = {**found, **special}
    if stop_ids:
        eos = found.get("eos_token_id", config["eos_token_id"])
        ends = [*(eos if isinstance(eos, list) else [] if eos is None else [eos]), *stop_ids]
        found["eos_token_id"] = list(dict.fromkeys(ends))
    _check_tokens({name: found.get(name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}, vocab_size)
    return found
