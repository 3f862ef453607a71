"""The token refiner of clips: identity at first, given frames stay, its conditions count, and files rebuild it."""

from pathlib import Path
from shutil import copytree

import pytest
import torch
from blob_shards import tiny, write_blobs
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from latentloom.drifting.clips.backbones import network_state, new_network
from latentloom.drifting.clips.classes import make_classes
from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.corruption import FilledClips, Keyframes
from latentloom.drifting.clips.data import ClipData, load_clips
from latentloom.drifting.clips.fitted_warper import WARPER_FILE, make_keyframes
from latentloom.drifting.clips.refiner import ADAM_NAMES, TokenRefiner, TokenRefinerShape
from latentloom.drifting.clips.refiner_files import ClipRefiner, load_clip_refiner, save_clip_refiner
from latentloom.drifting.clips.shard_writer import ShardWriter
from latentloom.drifting.clips.train import ClipRefinement
from latentloom.errors import CheckpointError, FileError, LatentLoomError, ShapeError
from latentloom.keyframes.sinkhorn import SinkhornWarper
from latentloom.training import make_optimizers
from latentloom.wan.shipped import micro_wan_weights

CPU = torch.device("cpu")
SIZES = (4, 3, 5, 8, 8)
CONDITIONS = ("given", "confidence", "classes", "level", "alpha", "text")


def make(**changes) -> TokenRefiner:
    torch.manual_seed(0)
    about = {"channels": 3, "num_frames": 5, "rows": 8, "columns": 8, "patch": 2, "num_classes": 3, "num_levels": 2}
    about |= {"text_width": 6, "width": 16, "depth": 2, "num_heads": 2}
    return TokenRefiner(TokenRefinerShape.model_validate(about | changes))


def inputs(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch, _, num_frames, *_ = sizes
    given = torch.zeros(batch, num_frames, dtype=torch.bool)
    given[:, [0, -1]] = True
    given[0, 2] = True
    return {
        "filled": torch.randn(sizes, generator=generator),
        "given": given,
        "confidence": torch.where(given, 1.0, 0.4),
        "classes": torch.arange(batch) % 3,
        "level": torch.arange(batch) % 2,
        "alpha": torch.full((batch,), 1.5),
        "text": torch.randn(batch, 4, 6, generator=generator),
        "text_mask": torch.arange(4) < torch.tensor([[1], [2], [4], [3]])[:batch],
    }


def train(refiner: torch.nn.Module, steps: int = 8) -> None:
    """A few steps towards nonsense, after which every path of the conditions is open."""
    wanted = torch.randn(SIZES, generator=torch.Generator().manual_seed(9))
    optimizer = torch.optim.AdamW(refiner.parameters(), lr=1e-2)
    for step in range(steps):
        loss = F.mse_loss(refiner(**inputs(step)), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def trained() -> TokenRefiner:
    refiner = make()
    train(refiner)
    return refiner.eval().requires_grad_(False)


@pytest.mark.parametrize("keep_anchors_fixed", [True, False])
def test_at_first_it_gives_back_what_it_is_given(keep_anchors_fixed):
    given = inputs()
    assert torch.equal(make(keep_anchors_fixed=keep_anchors_fixed)(**given), given["filled"])


def test_given_frames_stay_bit_for_bit_when_they_are_fixed_and_move_when_they_are_not(trained):
    free = make(keep_anchors_fixed=False)
    train(free)
    for seed in range(3):
        about = inputs(seed)
        given, before = about["given"], about["filled"].transpose(1, 2)
        fixed, moved = (refiner(**about).detach().transpose(1, 2) for refiner in (trained, free))
        assert torch.equal(fixed[given], before[given])
        assert bool((fixed[~given] != before[~given]).flatten(1).any(dim=1).all())
        assert bool((moved[given] != before[given]).flatten(1).any(dim=1).all())


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_counts(trained, name):
    about = inputs()
    changed = {
        "given": about["given"] ^ (torch.arange(5) == 1),
        "confidence": about["confidence"] * 0.5,
        "classes": (about["classes"] + 1) % 3,
        "level": 1 - about["level"],
        "alpha": about["alpha"] + 1,
        "text": about["text"] + 1,
    }
    here = trained(**about), trained(**{**about, name: changed[name]})
    difference = (here[0] - here[1])[:, :, 3].flatten(1).abs().amax(dim=1)  # a frame that is given in neither
    assert float(difference.min()) > 1e-6


def test_a_change_in_one_frame_reaches_the_others(trained):
    about = inputs()
    other = about["filled"].clone()
    other[:, :, 0] += 1
    assert float((trained(**about) - trained(**{**about, "filled": other}))[:, :, 3].abs().max()) > 1e-4


def test_what_stands_beyond_a_text_is_not_read(trained):
    about = inputs()
    beyond = torch.where(about["text_mask"].unsqueeze(-1), about["text"], 99.0)
    assert torch.equal(trained(**about), trained(**{**about, "text": beyond}))
    longer = F.pad(about["text"], (0, 0, 0, 3)), F.pad(about["text_mask"], (0, 3))
    padded = trained(**{**about, "text": longer[0], "text_mask": longer[1]})
    assert torch.allclose(trained(**about), padded, atol=1e-6)
    empty = trained(**{**about, "text_mask": torch.zeros_like(about["text_mask"])})
    assert bool(empty.isfinite().all())


def test_a_clip_is_refined_alike_in_every_batch(trained):
    about = inputs()
    alone = trained(**{name: value[1:2] for name, value in about.items()})
    assert torch.allclose(alone, trained(**about)[1:2], atol=1e-5)


def test_other_clips_are_refused_and_never_transposed(trained):
    about = inputs()
    turned = about["filled"].transpose(1, 2).contiguous()  # [B, T, C, H, W]
    for clips in (turned, about["filled"][:, :, :4], about["filled"][..., :6], about["filled"][:, :2]):
        num_frames = clips.shape[2]
        given = torch.ones(4, num_frames, dtype=torch.bool)
        other = {**about, "filled": clips, "given": given, "confidence": given.float()}
        with pytest.raises(ShapeError, match="a refiner of 3 channels, 5 frames and 8x8 cells") as raised:
            trained(**other)
        assert "\n" not in str(raised.value)


def test_frames_that_the_patches_do_not_divide_are_refused():
    with pytest.raises(ShapeError, match="patch_size = 3 does not divide frames of 8x8"):
        make(patch=3)


def refiner_of(config: ClipConfig, folder: Path) -> tuple[ClipRefiner, ClipData]:
    """A refiner whose weights are all random, so that it changes every clip."""
    data = load_clips(config, CPU)
    classes, data = make_classes(config, data, folder / "classes")
    keyframes = make_keyframes(config, data, folder / "interpolation", CPU)
    network = new_network(data, config, classes.num_classes, 0)
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return ClipRefiner(network.eval().requires_grad_(False), keyframes, classes, data.manifest), data


def completed(refiner: ClipRefiner, data: ClipData) -> tuple[FilledClips, Tensor]:
    rows = torch.arange(4)
    holes = refiner.keyframes.draw_holes(4, torch.Generator().manual_seed(3))
    filled = refiner.keyframes.fill(data.train.load(rows), holes)
    text = data.train.load_text(rows) if data.text_width is not None else (None, None)
    return filled, refiner.complete(filled, holes.masks, data.train.labels[rows], torch.ones(4), *text)


def same_after_saving(config: ClipConfig, folder: Path) -> ClipRefiner:
    """Saves and loads a refiner; the one that was loaded."""
    refiner, data = refiner_of(config, folder)
    path = folder / "refiner.safetensors"
    save_clip_refiner(path, refiner, config, {"seed": 0})
    loaded, settings = load_clip_refiner(path)
    assert settings == config
    assert loaded.manifest == refiner.manifest
    assert loaded.classes.encoder.fingerprint == refiner.classes.encoder.fingerprint
    assert torch.equal(loaded.classes.centroids, refiner.classes.centroids)
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    (filled, before), (again, after) = completed(refiner, data), completed(loaded, data)
    assert torch.equal(filled.values, again.values)
    assert torch.equal(before, after)
    assert not torch.equal(before, filled.values)
    return loaded


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("blobs") / "shards")


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    """Shards of noise in the shape of latents, with texts as wide as MicroWan's."""
    folder = tmp_path_factory.mktemp("latents") / "shards"
    generator = torch.Generator().manual_seed(0)
    with ShardWriter(folder, space="latent", frames="each", clips_per_shard=8) as writer:
        for number in range(12):
            clip = torch.randn(16, 5, 4, 4, generator=generator)
            writer.write(f"clip{number}", clip, torch.randn(2, 128, generator=generator), f"prompt {number}")
    return folder


def test_muon_takes_matrices_of_the_blocks_alone():
    refiner = make()
    muon = make_optimizers([refiner], muon_lr=0.1, adam_lr=0.1, adam_names=ADAM_NAMES)[1]
    taken = {matrix.data_ptr() for matrix in muon.param_groups[0]["params"]}
    names = {name for name, parameter in refiner.named_parameters() if parameter.data_ptr() in taken}
    assert names
    assert all(name.startswith("blocks.") for name in names)


@pytest.mark.parametrize(
    "changes", [{}, {"use_text": False}, {"interp_mode": "learned", "interp_steps": 3}, {"keep_anchors_fixed": False}]
)
def test_a_saved_refiner_makes_the_same_clips(shards, tmp_path, changes):
    loaded = same_after_saving(tiny(shards, **changes), tmp_path)
    assert (loaded.keyframes.warper is not None) == ("interp_mode" in changes)
    assert isinstance(loaded.network, TokenRefiner)
    assert (loaded.network.of_text is None) == ("use_text" in changes)


def test_a_learned_interpolation_travels_with_its_refiner(shards, tmp_path):
    loaded = same_after_saving(tiny(shards, interp_mode="learned", interp_steps=5), tmp_path)
    new = Keyframes(tiny(shards, interp_mode="learned"), 9, SinkhornWarper(3))
    clips, given = torch.randn(2, 3, 9, 8, 8), torch.arange(9).remainder(4).eq(0).expand(2, -1)
    assert not torch.equal(loaded.keyframes.interpolate(clips, given), new.interpolate(clips, given))


def test_a_damaged_warper_is_refused_in_a_line(shards, tmp_path):
    config = tiny(shards, interp_mode="learned", interp_steps=1)
    data = load_clips(config, CPU)
    make_keyframes(config, data, tmp_path, CPU)
    for content in (b"half a file", (tmp_path / WARPER_FILE).read_bytes()[:-8]):
        (tmp_path / WARPER_FILE).write_bytes(content)
        with pytest.raises(FileError, match=WARPER_FILE):
            make_keyframes(config, data, tmp_path, CPU)
    save_file({"something": torch.zeros(1)}, tmp_path / WARPER_FILE)
    with pytest.raises(CheckpointError, match="is no warper of 3 channels"):
        make_keyframes(config, data, tmp_path, CPU)


def test_a_training_starts_from_a_refiner_whose_checkpoint_lies_elsewhere_now(latents, tmp_path):
    moved = copytree(micro_wan_weights(), tmp_path / "moved")
    config = tiny(latents, backbone="wan", train_blocks="lora", lora_rank=2, num_levels=2, ckpt_root=moved)
    same_after_saving(config, tmp_path)
    data = load_clips(config, CPU)
    classes, data = make_classes(config, data, tmp_path)
    moved = moved.rename(tmp_path / "here")
    later = config.model_copy(update={"ckpt_root": moved, "init_refiner": tmp_path / "refiner.safetensors"})
    started = ClipRefinement(data, classes, Keyframes(later, data.train.shape[1]), later, 1, CPU).network
    trained = load_clip_refiner(tmp_path / "refiner.safetensors", ckpt_root=moved)[0].network
    (*_, found), (*_, wanted) = network_state(started), network_state(trained)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("train_blocks", "base_dtype"), [("full", "float32"), ("lora", "float32"), ("lora", "bfloat16")]
)
def test_a_saved_wan_refiner_makes_the_same_clips(latents, tmp_path, train_blocks, base_dtype):
    about = {"train_blocks": train_blocks, "base_dtype": base_dtype}
    config = tiny(latents, backbone="wan", lora_rank=2, num_levels=2, **about)
    same_after_saving(config, tmp_path)
    size = (tmp_path / "refiner.safetensors").stat().st_size
    assert (size < 2e6) == (train_blocks == "lora")


@pytest.fixture(scope="module")
def saved(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    config = tiny(shards)
    refiner, _ = refiner_of(config, folder)
    save_clip_refiner(folder / "refiner.safetensors", refiner, config, {})
    return folder / "refiner.safetensors"


def rewritten(saved: Path, path: Path, change) -> Path:
    """The file with other tensors or another header."""
    tensors = load_file(saved)
    with safe_open(saved, "pt") as stored:
        metadata = stored.metadata()
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


def without_centroids(tensors, metadata):
    del tensors["classes.centroids"]


def without_a_weight(tensors, metadata):
    del tensors["network.patch_in.weight"]


def of_another_width(tensors, metadata):
    tensors["network.position"] = tensors["network.position"][:, :8].contiguous()


def with_an_unknown_part(tensors, metadata):
    tensors["elsewhere.weight"] = torch.zeros(1)


def with_unknown_settings(tensors, metadata):
    for key, value in metadata.items():
        metadata[key] = value.replace('"num_levels"', '"num_storeys"')


def without_the_condition_encoder(tensors, metadata):
    for name in [name for name in tensors if name.startswith("condition.")]:
        del tensors[name]


@pytest.mark.parametrize(
    "change",
    [
        without_centroids,
        without_a_weight,
        of_another_width,
        with_an_unknown_part,
        with_unknown_settings,
        without_the_condition_encoder,
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(saved, tmp_path, change):
    path = rewritten(saved, tmp_path / "damaged.safetensors", change)
    with pytest.raises(CheckpointError) as raised:
        load_clip_refiner(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_of_something_else_are_one_line(saved, tmp_path):
    cut, text, codebook = tmp_path / "cut.safetensors", tmp_path / "text.safetensors", saved.parent / "classes"
    cut.write_bytes(saved.read_bytes()[:-100])
    text.write_text("no tensors")
    for path in (cut, text, tmp_path / "missing.safetensors", *codebook.iterdir()):
        with pytest.raises(LatentLoomError) as raised:
            load_clip_refiner(path)
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(FileError, match="holds Codebook; give a refiner of clips"):
        load_clip_refiner(codebook / "codebook.safetensors")
