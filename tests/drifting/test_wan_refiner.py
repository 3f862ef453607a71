"""The Wan transformer as a refiner: identity at first, its conditions are used, and files rebuild it."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from latentloom.drifting.clips.wan_refiner import ADAM_NAMES, WanRefiner, WanRefinerShape, level_timesteps
from latentloom.drifting.clips.wan_refiner_base import make_wan_refiner, rebuild_wan_refiner
from latentloom.errors import CheckpointError, ConfigError, FileError, ShapeError
from latentloom.training import make_optimizers
from latentloom.wan.checkpoints import load_transformer
from latentloom.wan.shipped import micro_wan_weights

SIZES = (2, 16, 5, 4, 4)
CONDITIONS = ("given", "confidence", "classes", "level", "alpha", "text")


def make(train_blocks: str = "full", keep_anchors_fixed: bool = True) -> WanRefiner:
    torch.manual_seed(0)
    return make_wan_refiner(
        channels=16,
        num_classes=3,
        num_levels=2,
        keep_anchors_fixed=keep_anchors_fixed,
        train_blocks="lora" if train_blocks == "lora" else "full",
        lora_rank=4,
    )


def inputs(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch, _, num_frames, *_ = sizes
    given = torch.zeros(batch, num_frames, dtype=torch.bool)
    given[:, [0, -1]] = True
    return {
        "filled": torch.randn(sizes, generator=generator),
        "given": given,
        "confidence": torch.where(given, 1.0, 0.4),
        "classes": torch.arange(batch) % 3,
        "level": torch.arange(batch) % 2,
        "alpha": torch.full((batch,), 1.5),
        "text": torch.randn(batch, 6, 128, generator=generator),
        "text_mask": torch.arange(6) < torch.tensor([[4], [6]])[:batch],
    }


def train(refiner: WanRefiner, steps: int = 3) -> None:
    """A few steps towards nonsense, after which every path of the conditions has been opened."""
    wanted = torch.randn(SIZES, generator=torch.Generator().manual_seed(9))
    optimizer = torch.optim.AdamW([p for p in refiner.parameters() if p.requires_grad], lr=3e-3)
    for step in range(steps):
        loss = F.mse_loss(refiner(**inputs(step)), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(request: pytest.FixtureRequest) -> WanRefiner:
    refiner = make(request.param)
    train(refiner)
    return refiner.eval()


@pytest.mark.parametrize("train_blocks", ["full", "lora"])
@pytest.mark.parametrize("keep_anchors_fixed", [True, False])
def test_at_first_it_gives_back_what_it_is_given(train_blocks, keep_anchors_fixed):
    refiner, given = make(train_blocks, keep_anchors_fixed), inputs()
    assert torch.equal(refiner(**given), given["filled"])


def test_at_first_the_blocks_see_what_the_pretrained_model_sees():
    refiner, given = make(), inputs()
    base = load_transformer(micro_wan_weights(), dtype=torch.float32)
    refiner.transformer.proj_out.load_state_dict(base.proj_out.state_dict())  # in place of the zeros
    timesteps = torch.tensor(level_timesteps(2))[given["level"]]
    text = F.pad(given["text"] * given["text_mask"].unsqueeze(-1), (0, 0, 0, 506))
    expected = base(given["filled"], timesteps, text, return_dict=False)[0]
    found = refiner(**given) - given["filled"]
    torch.testing.assert_close(found[:, :, 1:-1], expected[:, :, 1:-1], atol=2e-5, rtol=1e-4)


def test_all_conditions_are_used_after_a_few_steps(trained):
    base = inputs()
    others = {
        "given": base["given"] | (torch.arange(5) == 2),
        "confidence": base["confidence"] * 0.5,
        "classes": (base["classes"] + 1) % 3,
        "level": 1 - base["level"],
        "alpha": base["alpha"] + 2,
        "text": base["text"].flip(0),
    }
    assert tuple(others) == CONDITIONS
    with torch.no_grad():
        before = trained(**base)
        for name, other in others.items():
            assert not torch.allclose(trained(**{**base, name: other})[:, :, 1], before[:, :, 1], atol=1e-6), name


def test_text_of_other_clips_and_padding_are_not_seen(trained):
    base = inputs()
    with torch.no_grad():
        before = trained(**base)
        garbage = base["text"].masked_fill(~base["text_mask"].unsqueeze(-1), torch.nan)
        assert torch.equal(trained(**{**base, "text": garbage}), before)
        longer = {"text": F.pad(base["text"], (0, 0, 0, 3), value=5.0), "text_mask": F.pad(base["text_mask"], (0, 3))}
        torch.testing.assert_close(trained(**{**base, **longer}), before, atol=1e-5, rtol=1e-5)
        none = {name: value for name, value in base.items() if not name.startswith("text")}
        empty = {"text": torch.zeros(2, 0, 128), "text_mask": torch.zeros(2, 0, dtype=torch.bool)}
        torch.testing.assert_close(trained(**none), trained(**{**base, **empty}))
        assert not torch.allclose(trained(**none), before, atol=1e-4)


def test_keyframes_stay_bit_for_bit_where_they_are_fixed(trained):
    base = inputs()
    with torch.no_grad():
        refined = trained(**base)
    assert torch.equal(refined[:, :, [0, 4]], base["filled"][:, :, [0, 4]])
    assert not torch.allclose(refined[:, :, 1:4], base["filled"][:, :, 1:4])
    free = rebuild_wan_refiner(trained.shape.model_copy(update={"keep_anchors_fixed": False}), trained.state_to_save())
    with torch.no_grad():
        assert not torch.allclose(free(**base)[:, :, 0], base["filled"][:, :, 0])


def test_lora_trains_the_adapters_and_the_new_layers_only():
    refiner = make("lora")
    before = {name: value.clone() for name, value in refiner.state_dict().items()}
    names = set(refiner.state_to_save())
    new = {name for name in names if ".lora_" not in name}
    assert {name.split(".")[0] for name in new} == {"keyframe_in", "of_class", "of_alpha", "transformer"}
    assert {name for name in new if name.startswith("transformer")} == {
        "transformer.proj_out.weight",
        "transformer.proj_out.bias",
    }
    assert len(names - new) == 2 * 6 * 10  # A and B of ten linear layers in each of six blocks
    assert {name for name, p in refiner.named_parameters() if p.requires_grad} == names
    train(refiner, steps=4)
    changed = {name for name, value in refiner.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == names
    total = sum(value.numel() for value in before.values())
    assert sum(before[name].numel() for name in names) < 0.1 * total


def test_full_training_reaches_every_weight():
    refiner = make("full")
    before = {name: value.clone() for name, value in refiner.state_dict().items()}
    assert set(refiner.state_to_save()) == set(before)
    train(refiner)
    same = [name for name, value in refiner.state_dict().items() if torch.equal(value, before[name])]
    assert not same
    # Muon takes the blocks' matrices, and no convolution, table or end
    muon = make_optimizers([refiner], muon_lr=0.1, adam_lr=0.1, adam_names=ADAM_NAMES)[1]
    hidden = [p for name, p in refiner.named_parameters() if p.ndim == 2 and "blocks." in name]
    assert len(muon.param_groups[0]["params"]) == len(hidden)


def test_what_was_saved_rebuilds_it(trained, tmp_path):
    path = tmp_path / "refiner.safetensors"
    averaged = trained.requires_grad_(False)  # as the averaged weights are
    save_file(averaged.state_to_save(), path)
    shape = WanRefinerShape.model_validate_json(trained.shape.model_dump_json())
    again = rebuild_wan_refiner(shape, load_file(path)).eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs(5)), trained(**inputs(5)))
    state = load_file(path)
    state.pop("of_class.weight")
    with pytest.raises(
        CheckpointError, match=r"1 weights are missing or unknown, such as of_class.weight; train again"
    ):
        rebuild_wan_refiner(shape, state)


def test_lora_is_put_on_its_own_base_only(tmp_path):
    refiner = make("lora")
    folder = tmp_path / "other"
    folder.mkdir()
    for file in (micro_wan_weights() / "transformer").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert rebuild_wan_refiner(refiner.shape, refiner.state_to_save(), folder).shape == refiner.shape
    weights = next(folder.glob("*.safetensors"))
    tensors = {name: value * 1.1 for name, value in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"trained on [0-9a-f]{16} \(MicroWan\); give that checkpoint"):
        rebuild_wan_refiner(refiner.shape, refiner.state_to_save(), folder)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for is_on in (False, True):
        refiner = make()
        train(refiner, steps=2)
        refiner.gradient_checkpointing = is_on
        refiner.zero_grad()
        first, second = refiner(**inputs(0)), refiner(**inputs(1))  # the second's texts must not replace the first's
        (first.square().mean() + 2 * second.mean()).backward()
        gradients.append([p.grad for p in refiner.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 16, 3, 5, 7), (1, 16, 1, 4, 4), (1, 16, 4, 6, 5)])
def test_frames_of_any_size_are_taken(size, trained):
    given = {**inputs(sizes=size), "given": torch.tensor([[True] + [False] * (size[2] - 1)])}
    with torch.no_grad():
        refined = trained(**given)
    assert refined.shape == size
    assert refined.isfinite().all()


def test_bfloat16_under_autocast_is_near_float32(trained):
    given = inputs()
    with torch.no_grad():
        exact = trained(**given)
        with torch.autocast("cpu", torch.bfloat16):
            rough = trained(**given)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.05 * (exact - given["filled"]).norm()


def test_a_frozen_base_may_be_narrow():
    torch.manual_seed(0)
    refiner = make_wan_refiner(channels=16, num_classes=3, num_levels=2, train_blocks="lora", dtype=torch.bfloat16)
    assert {p.dtype for p in refiner.parameters() if p.requires_grad} == {torch.float32}
    train(refiner, steps=2)
    assert refiner(**inputs()).dtype == torch.float32


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="takes clips of 16 channels, these have 3; give latents"):
        make_wan_refiner(channels=3, num_classes=1, num_levels=1)
    with pytest.raises(ConfigError, match="train all weights in float32"):
        make_wan_refiner(channels=16, num_classes=1, num_levels=1, dtype=torch.bfloat16)
    with pytest.raises(FileError, match="nowhere does not exist"):
        make_wan_refiner(Path("nowhere"), channels=16, num_classes=1, num_levels=1)
    refiner, given = make(), inputs()
    with pytest.raises(ShapeError, match="clips of 3 channels for MicroWan, which takes 16"):
        refiner(**{**given, "filled": torch.zeros(2, 3, 5, 4, 4)})
    with pytest.raises(ShapeError, match="tokens of 128 channels"):
        refiner(**{**given, "text": torch.zeros(2, 6, 64)})
    with pytest.raises(ShapeError, match="at most 512"):
        refiner(**{**given, "text": torch.zeros(2, 513, 128), "text_mask": torch.ones(2, 513, dtype=torch.bool)})


def test_lora_without_peft_is_a_line_of_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install 'latentloom\[finetune\]', or set train_blocks = 'full'"):
        make("lora")


def test_levels_are_spread_over_the_schedule():
    assert level_timesteps(4) == (200, 400, 600, 800)
    assert level_timesteps(1) == (500,)
