"""One row of layers is the whole models; cut into stages and shared by replicas, training does not change."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_runs import CAPTIONS, ENCODER, LORA, MemoryStore, forked, settings, train
from torch import Tensor

from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.stages import row
from latentloom.finetune.stages.row import DTYPES, build_stage, layer_names, wiring_for
from latentloom.tensors import TextEmbeddings
from latentloom.wan.checkpoints import load_text_encoder, load_tokenizer, load_transformer
from latentloom.wan.shipped import micro_wan_weights
from latentloom.wan.text_encoder import MAX_TOKENS, WanTextEncoder

CPU = torch.device("cpu")
NUM_STEPS = 3
CLIPPING = 0.005
STORE = MemoryStore(14, channels=16, text_dim=128)

# a norm far above the limit, so that clipping acts at every step; two micro-batches are under way at once
TWO_BATCHES = {"gradient_accumulation_steps": 2, "gradient_clipping": CLIPPING, "eval_share": 0.15}
TOP, BOTTOM = {"adapter": {"train_blocks_range": [4, 5]}}, {"adapter": {"train_blocks_range": [0, 1]}}
CASES: dict[str, tuple[Mapping[str, Any], ...]] = {
    "lora": (LORA,),
    "lora, upper blocks": (LORA, TOP),
    "lora, lower blocks": (LORA, BOTTOM),
    "lora, recomputed": (LORA, {"activation_checkpointing": True}),
    "lora, swapped": (LORA, {"blocks_to_swap": 3}),
    "encoder": (ENCODER,),
    "encoder, top block": (ENCODER, {"model": {"text_train_blocks": 1}}),
    "encoder, anchored": (ENCODER, {"model": {"text_anchor_weight": 0.5}}),
    "encoder, recomputed": (ENCODER, {"activation_checkpointing": True}),
    "encoder and lora": (ENCODER, LORA, {"model": {"first_frame_prob": 0.5}}),
}


def cases(num_stages: int) -> list[FinetuneConfig]:
    return [settings(TWO_BATCHES, *changes, {"pipeline_stages": num_stages}) for changes in CASES.values()]


@pytest.fixture(scope="module")
def micro() -> Path:
    return micro_wan_weights()


@pytest.fixture(scope="module")
def alone(micro: Path) -> dict[str, Any]:
    """Every case in one process."""
    return dict(zip(CASES, forked(1, train, cases(1), micro, STORE, NUM_STEPS)[0], strict=True))


@pytest.fixture(scope="module")
def staged(micro: Path) -> dict[str, Any]:
    """Every case in two stages, as the first process and the second saw it."""
    first, second = forked(2, train, cases(2), micro, STORE, NUM_STEPS)
    return dict(zip(CASES, zip(first, second, strict=True), strict=True))


@torch.no_grad()
def through_layers(config: FinetuneConfig, root: Path, values: Mapping[str, Tensor], num_layers: int) -> dict:
    """What the first layers of a row make of values, by name; of the whole row, the velocity."""
    num_text = None if config.model.cache_text_embeddings else 2
    names = layer_names(num_text, 2)
    stage = build_stage(config, root, None, names, [0, len(names)], 0, CPU)
    tensors = wiring_for(config, CPU).given.pack(values)
    for layer in stage.layers[:num_layers]:
        tensors = layer.eval()(tensors)
    if num_layers == len(names):
        return {"velocity": tensors[0]}
    return wiring_for(config, CPU).into_video.unpack(tensors)


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize(("dtype", "precision"), [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "bf16")])
def test_a_row_of_layers_computes_what_the_transformer_computes(
    tiny_checkpoint: Path, dtype: str, precision: str, folds: bool, by_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in bfloat16 padding is folded on the CPU and not on CUDA; both are to be right
    monkeypatch.setattr(row, "wiring_for", lambda config, device: replace(wiring_for(config, device), folds=folds))
    config = settings(LORA, {"model": {"dtype": dtype}, "mixed_precision": precision})
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(3, 4, 3, 4, 8, generator=generator)
    text = TextEmbeddings.cat(
        [TextEmbeddings.from_padded(torch.randn(1, n, 16, generator=generator), torch.tensor([n])) for n in (7, 2, 5)]
    )
    timestep = torch.tensor([900.0, 500.0, 20.0])
    if by_token:
        timestep = timestep[:, None].repeat(1, 3 * 2 * 4)
        timestep[1, :8] = 0  # the first frame of the second clip is given
    weights_dtype = DTYPES[dtype]
    values = {"noisy": noisy, "timestep": timestep, "seed": torch.tensor(0), "lengths": text.lengths}
    values["text"] = text.padded(7).to(weights_dtype)
    velocity = through_layers(config, tiny_checkpoint, values, 4)["velocity"]
    transformer = load_transformer(tiny_checkpoint, None, weights_dtype)
    given = {"hidden_states": noisy, "timestep": timestep, "encoder_hidden_states": text.padded(MAX_TOKENS)}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = transformer(
            **{name: value if name == "timestep" else value.to(weights_dtype) for name, value in given.items()},
            return_dict=False,
        )[0]
    if not folds:
        assert torch.equal(velocity, expected)
    elif dtype == "float32":
        torch.testing.assert_close(velocity, expected, atol=2e-5, rtol=0)
    else:  # folding rounds elsewhere, and no further from what float32 gives
        with torch.no_grad():
            truth = load_transformer(tiny_checkpoint, None, torch.float32)(**given, return_dict=False)[0]
        assert (velocity - truth).abs().mean() < 1.1 * (expected - truth).abs().mean()
    assert expected.std() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_of_layers_computes_what_the_text_encoder_computes(tiny_checkpoint: Path, dtype: str) -> None:
    # this optimizer keeps the encoder in its own dtype
    config = settings(ENCODER, {"model": {"dtype": dtype}, "optimizer": {"type": "AdamW8bitKahan"}})
    tokenizer = load_tokenizer(tiny_checkpoint)
    encoder = WanTextEncoder(load_text_encoder(tiny_checkpoint, DTYPES[dtype]), tokenizer)
    ids, mask = encoder.tokenize(CAPTIONS)
    values = {"ids": ids, "lengths": mask.sum(1), "seed": torch.tensor(0)}
    values |= {"noisy": torch.zeros(3, 4, 1, 4, 4), "timestep": torch.zeros(3)}
    text = through_layers(config, tiny_checkpoint, values, 4)["text"]
    torch.testing.assert_close(text, encoder.encode(CAPTIONS).padded(ids.shape[1]), atol=1e-6, rtol=0)
    assert not text[2, int(values["lengths"][2]) :].any()


@pytest.mark.parametrize("case", CASES)
def test_two_stages_train_as_one_does(alone: dict[str, Any], staged: dict[str, Any], case: str) -> None:
    one, (first, second) = alone[case], staged[case]
    assert first["losses"] == second["losses"]
    assert first["parts"][1] not in (0, first["parts"][2])
    assert one["losses"] == pytest.approx(first["losses"], abs=1e-5)
    assert one["norms"] == pytest.approx(first["norms"], abs=1e-5)
    assert first["norms"] == second["norms"]
    assert one["held_out"] == pytest.approx(first["held_out"], abs=1e-5)
    assert min(one["norms"]) > 1.5 * CLIPPING


def test_the_cases_leave_a_stage_without_anything_to_train(staged: dict[str, Any]) -> None:
    assert staged["lora, upper blocks"][0]["parts"][1] <= 5  # block 4 is layer 5
    assert staged["lora, lower blocks"][0]["parts"][1] > 2
    assert staged["encoder, top block"][0]["parts"][1] <= 4  # block 3 of the encoder is layer 4


def test_recomputing_and_swapping_change_nothing(alone: dict[str, Any]) -> None:
    assert alone["lora, swapped"]["losses"] == alone["lora"]["losses"]
    assert alone["lora, swapped"]["held_out"] == alone["lora"]["held_out"]
    assert alone["lora, recomputed"]["losses"] == alone["lora"]["losses"]
    assert alone["encoder, recomputed"]["losses"] == alone["encoder"]["losses"]


def test_training_lowers_the_loss_and_the_settings_matter(alone: dict[str, Any]) -> None:
    losses = [tuple(measured["losses"]) for name, measured in alone.items() if "recomputed" not in name]
    assert len(set(losses)) == len(losses) - 1  # swapped is as lora


def test_eight_bit_storage_stays_close(micro: Path, alone: dict[str, Any]) -> None:
    light = settings(TWO_BATCHES, LORA, {"model": {"transformer_dtype": "float8"}})
    ((measured,),) = forked(1, train, [light], micro, STORE, NUM_STEPS)
    assert measured["losses"] != alone["lora"]["losses"]
    assert measured["losses"] == pytest.approx(alone["lora"]["losses"], rel=0.02)


def test_two_replicas_train_as_two_accumulated_batches_do(micro: Path, alone: dict[str, Any]) -> None:
    changes = {"gradient_accumulation_steps": 1}
    configs = [settings(TWO_BATCHES, *CASES[case], changes) for case in ("lora", "encoder, anchored")]
    first, second = forked(2, train, configs, micro, STORE, NUM_STEPS)
    for replicated, other, case in zip(first, second, ("lora", "encoder, anchored"), strict=True):
        assert replicated["losses"] == other["losses"]
        assert replicated["losses"] == pytest.approx(alone[case]["losses"], abs=1e-5)
        assert replicated["norms"] == pytest.approx(alone[case]["norms"], abs=1e-5)
        assert replicated["held_out"] == pytest.approx(alone[case]["held_out"], abs=1e-5)


def test_two_stages_of_two_replicas_train_as_four_accumulated_batches_do(micro: Path) -> None:
    changes = (LORA, TWO_BATCHES)
    accumulated = settings(*changes, {"gradient_accumulation_steps": 4})
    ((alone,),) = forked(1, train, [accumulated], micro, STORE, NUM_STEPS)
    four = forked(4, train, [settings(*changes, {"pipeline_stages": 2})], micro, STORE, NUM_STEPS)
    for (measured,) in four:
        assert measured["losses"] == pytest.approx(alone["losses"], abs=1e-5)
        assert measured["norms"] == pytest.approx(alone["norms"], abs=1e-5)


def test_what_a_process_returns_does_not_end_with_it() -> None:
    (tensor,) = forked(1, torch.arange, 3)
    assert tensor.tolist() == [0, 1, 2]
    assert not tensor.is_shared()  # or its memory would be asked for of a process that may be gone
