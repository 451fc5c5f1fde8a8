"""Which corpus comes next: megatron-core's order, limits, and going on with another blend."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_ring.config.pretrain import CorpusConfig, RampConfig
from megatron_ring.corpus.blends import Blend, Place, Share, read_blend
from megatron_ring.corpus.mixing import steps_left
from megatron_ring.errors import UserError

WEIGHTS = (0.3, 5.0, 1.7, 0.01)


def blend(*weights: float, limits: tuple[int | None, ...] = ()) -> Blend:
    padded = (*limits, *[None] * (len(weights) - len(limits)))
    return Blend([Share("abcdef"[i], w, limit) for i, (w, limit) in enumerate(zip(weights, padded, strict=True))])


def test_the_order_is_that_of_megatron_core() -> None:
    from megatron.core.datasets import helpers

    count = 5000
    sources, numbers = np.zeros(count, dtype=np.int16), np.zeros(count, dtype=np.int64)
    normal = (np.array(WEIGHTS) / sum(WEIGHTS)).tolist()
    helpers.build_blending_indices(sources, numbers, normal, len(WEIGHTS), count, False)
    place, found = Place(), []
    for size in (1, 7, 992, 4000):  # however it is cut into batches
        place, drawn = blend(*WEIGHTS).draw(Place.from_json(json.loads(json.dumps(place.to_json()))), size)
        found += drawn
    assert found == list(zip(sources.tolist(), numbers.tolist(), strict=True))
    assert place.samples == count and place.read == {"abcd"[k]: n for k, n in Counter(s for s, _ in found).items()}


def test_a_corpus_is_left_out_at_its_limit_and_the_others_share_its_weight() -> None:
    three = blend(1, 1, 2, limits=(3, 40, None))
    _, drawn = three.draw(Place(), 300)
    counts = Counter(source for source, _ in drawn)
    assert counts[0] == 3 and counts[1] == 40 and three.left(Place()) is None
    late = Counter(source for source, _ in drawn[60:])
    assert late[0] == 0
    middle = Counter(source for source, _ in drawn[12:90])
    assert middle[1] / middle[2] == pytest.approx(0.5, abs=0.1)
    ending = blend(1, 1, limits=(3, 4))
    place, drawn = ending.draw(Place(), 100)
    assert len(drawn) == 7 and ending.left(place) == 0 and ending.draw(place, 5)[1] == []


def test_every_corpus_goes_on_where_it_stood_in_another_blend() -> None:
    place, first = blend(1, 3).draw(Place(), 80)
    other = Blend([Share("b", 1.0), Share("new", 1.0)])
    place, second = other.draw(place, 40)
    seen = [number for source, number in first if source == 1] + [number for source, number in second if source == 0]
    assert seen == list(range(60 + 20))
    assert [number for source, number in second if source == 1] == list(range(20))
    _, third = blend(1, 3).draw(place, 4)
    assert min(number for source, number in third if source == 0) == 20  # what had left stands where it stood


def test_a_weight_of_nothing_reads_nothing() -> None:
    assert {source for source, _ in blend(0, 1).draw(Place(), 50)[1]} == {1}


def test_steps_until_the_corpora_end() -> None:
    config = CorpusConfig(train=("x",), tokenizer=Path("t"), global_batch=8, ramp=RampConfig(start=2, samples=12))
    one = blend(1, limits=(30,))
    assert [config.batch_at(samples) for samples in (0, 3, 4, 8, 11, 12, 99)] == [2, 2, 4, 6, 6, 8, 8]
    place, steps = Place(), 0
    while one.left(place):
        place, steps = one.draw(place, config.batch_at(place.samples))[0], steps + 1
    assert steps_left(one, Place(), config) == steps
    assert steps_left(blend(1), Place(), config) is None


def test_names_and_weights(tmp_path: Path) -> None:
    entries = read_blend(["a/web:0.7", "b/web.bin:2", "c:d/code:1e-1"])
    assert [(str(e.prefix), e.weight, e.name) for e in entries] == [
        ("a/web", 0.7, "a/web"), ("b/web", 2.0, "b/web"), ("c:d/code", 0.1, "code"),
    ]  # fmt: skip
    path = tmp_path / "blend.yaml"
    path.write_text("sources:\n  - {prefix: x/y, epochs: 2}\n  - {prefix: z, name: other}\n")
    first, second = read_blend([str(path)])
    assert first.prefix == tmp_path / "x/y" and first.epochs == 2.0 and first.weight is None and second.name == "other"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a:0", "b:0"], "every weight is 0"),
        (["a:-1"], "the weight is -1.0, not a number at least 0"),
        (["a:nan"], "the weight is nan"),
        (["a:1", "b"], "give a weight to each corpus, or to none"),
        (["x/a", "x/a"], "two corpora are called x/a"),
        ([":1"], "names no corpus"),
        (["missing.yaml"], "--data.train missing.yaml: No such file"),
        (["missing.yaml", "a"], "stands alone"),
    ],
)
def test_a_blend_that_makes_no_sense(given: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_blend(given)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sources: []", "sources must be a list"),
        ("sources: {a: 1}", "sources must be a list"),
        ("sources: [a]", r"sources\[0\] is not a group"),
        ("sources: [{prefix: a, wieght: 1}]", r"sources\[0\]: unknown setting wieght"),
        ("sources: [{weight: 1}]", "prefix is missing"),
        ("sources: [{prefix: a, epochs: 0}]", "epochs is 0, not a number above 0"),
        ("sources: [{prefix: a, weight: yes}]", "weight is True, not a number"),
        ("source: [{prefix: a}]", "unknown setting source"),
        ("[1, 2]", "not a blend file"),
        ("sources: [", "not YAML"),
    ],
)
def test_a_blend_file_that_makes_no_sense(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "blend.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_blend([str(path)])
