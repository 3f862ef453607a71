"""A cache of pairs is built so that an interruption loses one shard at most."""

import os
import signal
from pathlib import Path

import pytest
import torch
from delta_caches import DIM, SUFFIXES, assert_same, in_child, some_pairs
from safetensors.torch import load_file, save_file

from latentloom.delta.cache import PairEmbeddings, build_cache, read_cache, shard_folder
from latentloom.delta.pairs import PromptPair
from latentloom.errors import ConfigError, FileError, PromptError
from latentloom.tensors import TextEmbeddings


class Encoder:
    """One token per letter, each a number of its own; counts what it is asked, and stops when told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.stop_after = stop_after

    def __call__(self, prompts: list[str]) -> TextEmbeddings:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(prompts)
        rows = [
            torch.tensor([[hash((ord(letter), at)) % 997 / 7] for letter in prompt])
            for at, prompt in enumerate(prompts)
        ]
        return TextEmbeddings.from_list([row.repeat(1, DIM) + torch.arange(DIM) / 3 for row in rows])


def quiet_build(encode: Encoder, out: Path, **settings) -> PairEmbeddings:
    return build_cache(some_pairs(10), encode, settings.pop("encoder", "e1"), out, **{"shard_size": 3, **settings})


@SUFFIXES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_built_cache_holds_every_prompt_in_order(tmp_path: Path, suffix: str, dtype: torch.dtype):
    encode, out = Encoder(), tmp_path / "new" / f"c{suffix}"
    built = quiet_build(encode, out, dtype=dtype)
    assert_same(read_cache(out), built)
    assert (built.pairs, built.encoder, built.base.dtype, len(built)) == (some_pairs(10), "e1", dtype, 10)
    assert built.base.lengths.tolist() == [len(pair.base) for pair in some_pairs(10)]
    for start in (0, 3, 6, 9):
        shard = some_pairs(10)[start : start + 3]
        expected = Encoder()([pair.rewritten for pair in shard]).to(dtype=dtype)
        assert torch.equal(built.rewritten[start : start + 3].tokens, expected.tokens)
    assert [len(call) for call in encode.calls] == [3, 3, 3, 3, 3, 3, 1, 1]
    assert list(out.parent.iterdir()) == [out]  # no shard is left


@SUFFIXES
@pytest.mark.parametrize("stop_after", [0, 1, 4, 5, 7])
def test_an_interrupted_build_resumes_and_ends_in_the_same_bytes(tmp_path: Path, suffix: str, stop_after: int):
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"c{suffix}"
    quiet_build(Encoder(), whole)
    with pytest.raises(KeyboardInterrupt):
        quiet_build(Encoder(stop_after), out)
    assert not out.exists()
    done = stop_after // 2  # both sides of a shard, or nothing of it
    assert len(list(shard_folder(out).glob("0*.safetensors"))) == done
    encode = Encoder()
    quiet_build(encode, out)
    assert len(encode.calls) == 8 - 2 * done
    assert out.read_bytes() == whole.read_bytes()
    assert not shard_folder(out).exists()


def test_a_killed_process_leaves_shards_that_the_next_one_takes_up(tmp_path: Path):
    class KilledEncoder(Encoder):
        def __call__(self, prompts: list[str]) -> TextEmbeddings:
            if len(self.calls) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(prompts)

    out = tmp_path / "c.npz"
    assert in_child(lambda: len(quiet_build(KilledEncoder(), out))) == -signal.SIGKILL
    assert sorted(path.name for path in shard_folder(out).iterdir()) == ["00000.safetensors", "00001.safetensors"]
    encode = Encoder()
    quiet_build(encode, out)
    quiet_build(Encoder(), tmp_path / "whole.npz")
    assert len(encode.calls) == 4
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


@pytest.mark.parametrize(
    ("settings", "num_calls"),
    [
        ({}, 2),
        ({"encoder": "e2"}, 8),
        ({"dtype": torch.float32}, 8),
        ({"shard_size": 5}, 4),
        ({"shard_size": 1}, 20),
    ],
)
def test_shards_of_another_encoder_dtype_or_size_are_encoded_again(tmp_path: Path, settings: dict, num_calls: int):
    with pytest.raises(KeyboardInterrupt):
        quiet_build(Encoder(6), tmp_path / "c.npz")
    encode = Encoder()
    built = quiet_build(encode, tmp_path / "c.npz", **settings)
    assert len(encode.calls) == num_calls
    fresh = quiet_build(Encoder(), tmp_path / "fresh.npz", **settings)
    assert_same(built, fresh)


def test_only_the_shard_whose_prompts_changed_is_encoded_again(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        quiet_build(Encoder(6), tmp_path / "c.npz")
    pairs = some_pairs(10)
    pairs[4] = PromptPair(pairs[4].base, "A harbour in the morning.")
    encode = Encoder()
    built = build_cache(pairs, encode, "e1", tmp_path / "c.npz", shard_size=3)
    assert [call[0] for call in encode.calls] == [pairs[3].base, pairs[3].rewritten, pairs[9].base, pairs[9].rewritten]
    assert built.rewritten.lengths[4] == len("A harbour in the morning.")


def test_damaged_shards_and_half_written_files_are_encoded_again(tmp_path: Path):
    out = tmp_path / "c.npz"
    with pytest.raises(KeyboardInterrupt):
        quiet_build(Encoder(6), out)
    first, second, third = sorted(shard_folder(out).iterdir())
    first.write_bytes(first.read_bytes()[:-5])
    second.write_bytes(b"")
    tensors = load_file(third)
    save_file({**tensors, "base_lengths": tensors["base_lengths"] + 1}, third, metadata=None)
    (shard_folder(out) / ".0badc0ffee.partial.safetensors").write_bytes(b"half")
    encode = Encoder()
    quiet_build(encode, out)
    assert len(encode.calls) == 8
    quiet_build(Encoder(), tmp_path / "whole.npz")
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not shard_folder(out).exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_embedding_that_is_not_finite_is_refused_by_its_pair(tmp_path: Path, value: float):
    def encode(prompts: list[str]) -> TextEmbeddings:
        found = Encoder()(prompts)
        row = next((row for row, prompt in enumerate(prompts) if prompt.startswith("A long boat, number 7")), None)
        if row is not None:
            found.to_list()[row][-1, 2] = value
        return found

    with pytest.raises(PromptError, match=r"the rewritten prompt of pair 8 .*not finite: 'A long boat, number 7"):
        build_cache(some_pairs(10), encode, "e", tmp_path / "c.npz", shard_size=3)
    assert not (tmp_path / "c.npz").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pairs": []}, "no pairs to encode"),
        ({"shard_size": 0}, "from shards of 0"),
        ({"dtype": torch.float16}, "a cache in torch.float16"),
        ({"out": "c.pt"}, "stored as .npz or .safetensors"),
        ({"out": "folder.npz"}, "is not a file"),
        ({"out": "file/c.npz"}, "cannot write"),
    ],
)
def test_settings_are_checked_before_anything_is_encoded(tmp_path: Path, settings: dict, said: str):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("")
    encode, settings = Encoder(), {"pairs": some_pairs(2), "out": "c.npz", **settings}
    pairs, out = settings.pop("pairs"), tmp_path / settings.pop("out")
    with pytest.raises((ConfigError, FileError), match=said):
        build_cache(pairs, encode, "e", out, **settings)
    assert encode.calls == []


def test_progress_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    quiet_build(Encoder(), tmp_path / "c.npz")
    assert "encoding pairs: 4/4" in capsys.readouterr().err
