"""Caching: what is read back is what the models give, and only what changed is computed again."""

from pathlib import Path
from typing import NoReturn

import pytest
import torch
from cache_runs import run, write_clip, write_clips
from PIL import Image

from latentloom.errors import ConfigError, FileError
from latentloom.finetune.cache import CacheModels, cache_dataset
from latentloom.finetune.media import read_frames
from latentloom.wan import checkpoints
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import facts_of
from latentloom.wan.text_encoder import WanTextEncoder
from latentloom.wan.vae import encode_video


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Six clips with captions."""
    write_clips(tmp_path / "clips", 6)
    return tmp_path / "clips"


def counts(dataset: Path, checkpoint: Path, **options: bool | int) -> tuple[int, int]:
    """Latents and texts that a run computes."""
    report = run(dataset, checkpoint, **options).report
    return report.num_latents_computed, report.num_texts_computed


def test_the_cache_gives_what_the_models_give(clips: Path, tiny_checkpoint: Path):
    cached = run(clips, tiny_checkpoint)
    vae = checkpoints.load_vae(tiny_checkpoint, dtype=torch.float32)
    encoder = WanTextEncoder(
        checkpoints.load_text_encoder(tiny_checkpoint, dtype=torch.float32), checkpoints.load_tokenizer(tiny_checkpoint)
    )
    assert len(cached) == 6
    for index, name in enumerate(cached.names):
        path, example = clips / Path(name).name, cached[index]
        frames = read_frames(path, ClipSize(9, 48, 48), 8)
        assert torch.equal(example.latents, encode_video(vae, frames[None], torch.device("cpu")).values[0])
        caption = path.with_suffix(".txt").read_text().removesuffix("\n")
        assert example.caption == caption
        assert example.text is not None
        torch.testing.assert_close(example.text, encoder.encode([caption]).tokens, atol=1e-5, rtol=1e-5)


def test_batches_give_what_single_clips_give(clips: Path, tiny_checkpoint: Path):
    one = run(clips, tiny_checkpoint)
    alone = [one[index].latents for index in range(len(one))]
    several = run(clips, tiny_checkpoint, regenerate=True, batch_size=4)
    assert several.report.num_latents_computed == 6
    for index, latents in enumerate(alone):
        torch.testing.assert_close(several[index].latents, latents, atol=1e-5, rtol=1e-5)


def test_bfloat16_is_stored_as_the_rounded_float32(clips: Path, tiny_checkpoint: Path):
    full = run(clips, tiny_checkpoint)
    models = CacheModels.of(tiny_checkpoint, torch.device("cpu"), torch.bfloat16)
    half = cache_dataset(clips, models, facts=facts_of(tiny_checkpoint), cache_text=True)
    assert half.report.num_latents_computed == 6, "beside the other dtype"
    assert half[0].latents.dtype == torch.float32
    assert half[0].text is not None
    assert half[0].text.dtype == torch.bfloat16
    assert torch.equal(half[0].latents, full[0].latents.bfloat16().float())


def test_a_second_run_computes_nothing_and_loads_no_model(clips: Path, tiny_checkpoint: Path):
    first = run(clips, tiny_checkpoint).report
    assert (first.num_latents_computed, first.num_texts_computed) == (6, 5), "equal captions are encoded once"
    before = {path: path.stat().st_mtime_ns for path in (clips / "cache").rglob("*.arrow")}

    def fail() -> NoReturn:
        raise AssertionError("a model was loaded")

    found = CacheModels.of(tiny_checkpoint, torch.device("cpu"), torch.float32)
    unloadable = CacheModels(fail, fail, found.vae_fingerprint, found.text_fingerprint, found.device, found.dtype)
    again = cache_dataset(clips, unloadable, facts=facts_of(tiny_checkpoint), cache_text=True)
    assert again.report.num_computed == 0
    assert again.report.num_reused == 11
    assert {path: path.stat().st_mtime_ns for path in (clips / "cache").rglob("*.arrow")} == before


def test_another_caption_computes_text_alone(clips: Path, tiny_checkpoint: Path):
    run(clips, tiny_checkpoint)
    (clips / "002.txt").write_text("a large blue square")
    cached = run(clips, tiny_checkpoint)
    assert (cached.report.num_latents_computed, cached.report.num_texts_computed) == (0, 1)
    assert cached[2].caption == "a large blue square"


def test_another_clip_computes_its_latents_alone(clips: Path, tiny_checkpoint: Path):
    before = run(clips, tiny_checkpoint)
    old = before[2].latents
    write_clip(clips / "002.mp4", seed=99)
    cached = run(clips, tiny_checkpoint)
    assert (cached.report.num_latents_computed, cached.report.num_texts_computed) == (1, 0)
    assert not torch.equal(cached[2].latents, old)


def test_renamed_and_copied_files_compute_nothing(clips: Path, tiny_checkpoint: Path):
    run(clips, tiny_checkpoint)
    (clips / "005.mp4").rename(clips / "renamed.mp4")
    (clips / "copy.mp4").write_bytes((clips / "000.mp4").read_bytes())
    (clips / "copy.txt").write_bytes((clips / "000.txt").read_bytes())
    cached = run(clips, tiny_checkpoint)
    assert cached.report.num_latents_computed == 0
    assert len(cached) == 7
    assert torch.equal(cached[0].latents, cached[cached.names.index("clips/copy.mp4")].latents)


def test_another_encoder_computes_text_alone_and_another_vae_latents_alone(
    clips: Path, tiny_checkpoint: Path, tmp_path: Path
):
    run(clips, tiny_checkpoint)
    found = CacheModels.of(tiny_checkpoint, torch.device("cpu"), torch.float32)
    parts = (found.vae, found.text_encoder, found.vae_fingerprint, found.text_fingerprint, found.device, found.dtype)
    other_text = CacheModels(*parts[:3], lambda: "0" * 16, *parts[4:])
    other_vae = CacheModels(*parts[:2], lambda: "0" * 16, *parts[3:])
    for models, expected in ((other_text, (0, 5)), (other_vae, (6, 0))):
        report = cache_dataset(clips, models, facts=facts_of(tiny_checkpoint), cache_text=True).report
        assert (report.num_latents_computed, report.num_texts_computed) == expected


def test_without_text_none_is_encoded(clips: Path, tiny_checkpoint: Path):
    cached = run(clips, tiny_checkpoint, cache_text=False)
    assert cached[0].text is None
    assert cached[0].caption == "a small red circle moves "
    assert cached.report.num_texts_computed + cached.report.num_texts_reused == 0
    assert not (clips / "cache" / "text").exists()


def test_repeats_and_resolutions_multiply_the_items(clips: Path, tiny_checkpoint: Path, tmp_path: Path):
    Image.new("RGB", (90, 60), "red").save(clips / "still.png")
    file = tmp_path / "dataset.toml"
    file.write_text("resolutions = [48, 32]\nframe_buckets = [1, 5]\n[[directory]]\npath = 'clips'\nnum_repeats = 3\n")
    cached = run(file, tiny_checkpoint)
    assert len(cached) == len(cached.sizes) == len(cached.names) == 7 * 2 * 3
    assert cached.report.num_latents_computed == 7 * 2
    assert cached.report.buckets == {
        ClipSize(5, 48, 48): 18,
        ClipSize(5, 32, 32): 18,
        ClipSize(1, 48, 48): 3,
        ClipSize(1, 32, 32): 3,
    }
    assert len(set(cached.names)) == 7
    assert cached.names[0] == cached.names[5] == "clips/000.mp4"
    for index in (0, 3, -1):
        size, latents = cached.sizes[index], cached[index].latents
        assert latents.shape == (4, (size.num_frames - 1) // 4 + 1, size.height // 8, size.width // 8)
    with pytest.raises(IndexError):
        cached[len(cached)]


def test_one_folder_may_be_named_twice_with_other_settings(clips: Path, tiny_checkpoint: Path, tmp_path: Path):
    file = tmp_path / "dataset.toml"
    file.write_text(
        "[[directory]]\npath = 'clips'\nresolutions = [48]\n[[directory]]\npath = 'clips'\nresolutions = [32]\n"
    )
    cached = run(file, tiny_checkpoint)
    assert [size.height for size in cached.sizes] == [48] * 6 + [32] * 6
    assert counts(file, tiny_checkpoint) == (0, 0)


def test_trust_reads_no_media_and_notices_no_change(clips: Path, tiny_checkpoint: Path):
    before = run(clips, tiny_checkpoint)
    expected = [before[index].latents for index in range(6)]
    write_clip(clips / "new.mp4", seed=50)
    for path in clips.glob("00*.mp4"):
        path.write_bytes(b"")
    trusted = run(clips, tiny_checkpoint, trust=True)
    assert trusted.report.num_computed == 0
    assert trusted.report.skipped == {}
    assert len(trusted) == 6
    assert all(torch.equal(trusted[index].latents, latents) for index, latents in enumerate(expected))
    looked = run(clips, tiny_checkpoint)
    assert looked.names == ["clips/new.mp4"]
    assert len(looked.report.skipped) == 6


def test_trust_without_an_index_looks(clips: Path, tiny_checkpoint: Path):
    assert counts(clips, tiny_checkpoint, trust=True) == (6, 5)


def test_regenerate_starts_over(clips: Path, tiny_checkpoint: Path):
    run(clips, tiny_checkpoint)
    before = set((clips / "cache").rglob("shard-*.arrow"))
    assert counts(clips, tiny_checkpoint, regenerate=True) == (6, 5)
    assert before.isdisjoint((clips / "cache").rglob("shard-*.arrow"))


def test_trust_and_regenerate_exclude_each_other(clips: Path, tiny_checkpoint: Path):
    with pytest.raises(ConfigError, match="trust_cache and regenerate_cache"):
        run(clips, tiny_checkpoint, trust=True, regenerate=True)


def test_a_folder_without_media_is_refused(tmp_path: Path, tiny_checkpoint: Path):
    with pytest.raises(FileError, match="it is empty"):
        run(tmp_path, tiny_checkpoint)
