"""The known models, built without memory, have exactly the tensors of the published checkpoints."""

import csv
import math
import tracemalloc
from pathlib import Path

import pytest

from latentloom.errors import ConfigError
from latentloom.finetune.full_size import build_on_meta, build_text_encoder_on_meta, official_shapes
from latentloom.wan import facts

#: The tensors outside of the blocks, as wan/modules/model.py of the official repository makes them for TI2V-5B.
OUTSIDE_5B = {
    "patch_embedding.weight": (3072, 48, 1, 2, 2),
    "patch_embedding.bias": (3072,),
    "text_embedding.0.weight": (3072, 4096),
    "text_embedding.0.bias": (3072,),
    "text_embedding.2.weight": (3072, 3072),
    "text_embedding.2.bias": (3072,),
    "time_embedding.0.weight": (3072, 256),
    "time_embedding.0.bias": (3072,),
    "time_embedding.2.weight": (3072, 3072),
    "time_embedding.2.bias": (3072,),
    "time_projection.1.weight": (18432, 3072),
    "time_projection.1.bias": (18432,),
    "head.head.weight": (192, 3072),
    "head.head.bias": (192,),
    "head.modulation": (1, 2, 3072),
}


def published_blocks(shared: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the 5B's block tensors by official name, from the public file's header."""
    with (shared / "data" / "wan22_ti2v_5b_keys.csv").open() as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    return {row["key"]: tuple(int(size) for size in row["shape"].split("x")) for row in rows}


def test_the_5b_has_exactly_the_published_keys_and_shapes(shared):
    assert official_shapes(build_on_meta("ti2v-5b")) == published_blocks(shared) | OUTSIDE_5B


def test_either_expert_of_the_a14b_has_forty_blocks_of_its_published_sizes():
    assert facts.get("t2v-a14b").experts == ("high", "low")
    shapes = official_shapes(build_on_meta("t2v-a14b"))
    assert len(shapes) == 40 * 27 + len(OUTSIDE_5B)
    assert {key.split(".")[1] for key in shapes if key.startswith("blocks.")} == {str(n) for n in range(40)}
    assert shapes["blocks.39.cross_attn.k.weight"] == (5120, 5120)
    assert shapes["blocks.39.ffn.0.weight"] == (13824, 5120)
    assert shapes["patch_embedding.weight"] == (5120, 16, 1, 2, 2)
    assert shapes["head.head.weight"] == (64, 5120)
    assert sum(math.prod(shape) for shape in shapes.values()) == 14_288_491_584


def test_umt5_has_the_official_encoders_tensors():
    shapes = official_shapes(build_text_encoder_on_meta("ti2v-5b"))
    assert len(shapes) == 24 * 10 + 2
    assert shapes["token_embedding.weight"] == (256384, 4096)
    assert shapes["blocks.23.ffn.gate.0.weight"] == (10240, 4096)
    assert shapes["blocks.0.pos_embedding.embedding.weight"] == (32, 64)
    assert shapes["norm.weight"] == (4096,)
    assert sum(math.prod(shape) for shape in shapes.values()) == 5_680_910_336


def test_nothing_is_allocated_for_weights():
    tracemalloc.start()
    model = build_on_meta("t2v-a14b")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert peak < 2**28


@pytest.mark.parametrize("build", [build_on_meta, build_text_encoder_on_meta])
def test_a_model_whose_sizes_only_its_checkpoint_knows_is_refused(build):
    with pytest.raises(ConfigError, match=r"give one of ti2v-5b, t2v-a14b, t2v-1\.3b"):
        build("micro")
