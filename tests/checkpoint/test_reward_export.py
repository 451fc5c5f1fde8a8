"""A reward model's folder opens in transformers as a sequence classifier of one label, and gives the rewards of training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.errors import UserError
from tests.checkpoint.published import random_tensors, write_folder
from tests.checkpoint.test_export_loads import SHAPE
from tests.other_transformers import in_each_release, in_transformers

REWARD = replace(SHAPE, head="score")
LOAD = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification

def opened(folder, rows):
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    half = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.bfloat16)
    assert type(model).__name__ == "BailingMoeForSequenceClassification", type(model)
    longest, pad = max(map(len, rows)), model.config.pad_token_id
    right = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    left = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        found = {"alone": [model(torch.tensor([row])).logits.item() for row in rows],
                 "right": model(right, attention_mask=mask).logits[:, 0].tolist(),
                 "left": model(left, attention_mask=mask.flip(1)).logits[:, 0].tolist(),
                 "no mask": model(right).logits[:, 0].tolist()}
    return {**found, "labels": model.config.num_labels, "score": str(half.score.weight.dtype)}

rows = json.loads(sys.argv[2])
json.dump([opened(folder, rows) for folder in json.loads(sys.argv[1])], open(sys.argv[3], "w"))
"""


def our_rewards(folder: str, rows: list[list[int]]) -> list[float]:
    from megatron_ring.config.stage import ModelOptions
    from megatron_ring.reward_models.scoring import score_sequences
    from megatron_ring.run.stage import open_model, resolve_shape

    stage = open_model(ModelOptions(precision="fp32"), resolve_shape(None, Path(folder)), Path(folder))
    return score_sequences(stage.model, stage.context, rows, 64, 0)


@pytest.mark.slow
@in_each_release
def test_transformers_gives_the_same_rewards(tmp_path: Path, run_on: Any, release: str) -> None:
    """Also where padding is the end of a text, 60: then the first of those at the end is the text's."""
    from megatron_ring.checkpoint.convert import export_checkpoint, import_folder

    tensors = {name: 0.2 * tensor for name, tensor in random_tensors(REWARD, seed=3).items()}
    hf = write_folder(tmp_path / "hf", REWARD, tensors)
    assert import_folder(hf, tmp_path / "ckpt") == REWARD
    folders = [str(tmp_path / f"pad{pad}") for pad in (59, 60)]
    for folder, pad in zip(folders, (59, 60), strict=True):
        export_checkpoint(tmp_path / "ckpt", Path(folder), special_ids=(60, pad))
    generator = torch.Generator().manual_seed(2)
    rows = [[*torch.randint(0, 58, (n,), generator=generator).tolist(), 60] for n in (5, 12, 1, 23)]
    texts = (json.dumps(folders), json.dumps(rows), str(tmp_path / "found.json"))
    in_transformers(release, LOAD, *texts, folder=tmp_path)
    expected = run_on(1, our_rewards, folders[0], rows)[0]
    assert max(expected) - min(expected) > 0.1
    for found in json.loads((tmp_path / "found.json").read_text()):
        assert (found["labels"], found["score"]) == (1, "torch.float32")
        for way in ("alone", "right", "left", "no mask"):
            assert found[way] == pytest.approx(expected, abs=2e-5), way


@pytest.mark.parametrize("labels", [{}, {"num_labels": 2}, {"id2label": {"0": "bad", "1": "good"}}])
def test_a_classifier_of_other_labels_is_refused(tmp_path: Path, labels: dict[str, Any]) -> None:
    from megatron_ring.checkpoint.hf_config import config_json, parse_config

    config = {**config_json(SHAPE, torch.float32, 1, 0), "architectures": ["BailingMoeForSequenceClassification"], **labels}
    with pytest.raises(UserError, match="a sequence classifier of 2 labels: only one"):
        parse_config(config, tmp_path / "config.json")


def test_the_score_stays_fp32(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from megatron_ring.checkpoint.convert import bytes_to_export, export_checkpoint, import_folder

    tensors = random_tensors(REWARD, seed=1)
    import_folder(write_folder(tmp_path / "hf", REWARD, tensors), tmp_path / "ckpt", torch.bfloat16)
    export_checkpoint(tmp_path / "ckpt", tmp_path / "out", dtype=torch.bfloat16)
    found = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(found["score.weight"], tensors["score.weight"]) and found["score.weight"].dtype == torch.float32
    assert {tensor.dtype for name, tensor in found.items() if name != "score.weight"} == {torch.bfloat16}
    size = sum(tensor.nbytes for tensor in found.values())
    assert bytes_to_export(tmp_path / "ckpt", torch.bfloat16) == size


def test_a_folder_without_its_score_is_refused_by_name(tmp_path: Path) -> None:
    from megatron_ring.checkpoint.convert import import_folder

    tensors = random_tensors(SHAPE)
    hf = write_folder(tmp_path / "hf", REWARD, tensors)
    with pytest.raises(UserError, match=r"score\.weight is missing; lm_head\.weight is unexpected"):
        import_folder(hf, tmp_path / "ckpt")
