"""Embedding deltas: files, and the prompts that they change and leave."""

import pytest
import torch
from comfy_nodes.hosts import Rig, assert_same_state, state_of

from latentloom.comfy.nodes.delta import delta_names
from latentloom.delta import DeltaConfig, EmbeddingDelta, save_adapter
from latentloom.errors import ConfigError, CorruptFileError, LatentLoomError

LOADER, APPLY = "LatentLoomEmbeddingDeltaLoader", "WanVideoEmbeddingDeltaApply"
UNSEEN = "A tiny scarlet ball heads west on an ebony background."
KNOWN = "A small red circle moves to the left on a black background."


@pytest.fixture
def adapter(micro_wan) -> EmbeddingDelta:
    """MicroWan's own."""
    return Rig("native", micro_wan).run(LOADER)[0]


def test_the_positive_prompt_is_corrected_and_nothing_else(rig, adapter):
    text = rig.text(UNSEEN, negative="A blue square.")
    before = state_of(text)
    corrected, info = rig.run(APPLY, text_embeds=text, embedding_delta=adapter)
    assert_same_state(text, before)
    wanted = adapter(rig.embeddings(text)).tokens
    assert torch.allclose(rig.embeddings(corrected).tokens, wanted)
    assert not torch.allclose(wanted, rig.embeddings(text).tokens)
    if rig.host == "wrapper":
        assert corrected["negative_prompt_embeds"] is text["negative_prompt_embeds"]
    assert "13 tokens moved by" in info
    assert "gate 1.00" in info


def test_a_prompt_in_known_words_stays_nearly_as_it_was(rig, adapter):
    text = rig.text(KNOWN)
    corrected, info = rig.run(APPLY, text_embeds=text, embedding_delta=adapter)
    assert torch.allclose(rig.embeddings(corrected).tokens, rig.embeddings(text).tokens, atol=0.02)
    assert "gate 0.00" in info


def test_strength_scales_and_0_is_the_text_itself(rig, adapter):
    text = rig.text(UNSEEN)
    assert rig.run(APPLY, text_embeds=text, embedding_delta=adapter, strength=0.0)[0] is text
    start = rig.embeddings(text).tokens
    half, full = (
        rig.embeddings(rig.run(APPLY, text_embeds=text, embedding_delta=adapter, strength=strength)[0]).tokens - start
        for strength in (0.5, 1.0)
    )
    assert torch.allclose(2 * half, full, atol=1e-4)


def test_how_many_corrections_the_cap_cut_is_said(rig):
    capped = EmbeddingDelta(DeltaConfig(d_model=128, rank=2, cap=0.1, gated=False))
    torch.nn.init.constant_(capped.bias, 5.0)
    info = rig.run(APPLY, text_embeds=rig.text(KNOWN), embedding_delta=capped)[1]
    assert "moved by 10% of their length on average, 10% at most" in info
    assert "the cap of 0.1 cut the correction of 100% of them" in info


def test_an_adapter_of_another_encoder_is_one_clear_error(rig):
    other = EmbeddingDelta(DeltaConfig(d_model=4096, rank=2))
    with pytest.raises(LatentLoomError, match="have 128 channels and the adapter was trained on 4096") as raised:
        rig.run(APPLY, text_embeds=rig.text(KNOWN), embedding_delta=other)
    assert "\n" not in str(raised.value)


def test_files_of_both_formats_are_found_and_code_is_not_run(micro_wan, comfyui):
    rig = Rig("native", micro_wan)
    folder = comfyui.folder / "models/latentloom/deltas"
    folder.mkdir(parents=True)
    for name in ("a.safetensors", "b.pt"):
        save_adapter(folder / name, EmbeddingDelta(DeltaConfig(d_model=8, rank=2)), {})
    (folder / "c.pt").write_bytes(b"\x80\x04cos\nsystem\n")
    assert delta_names() == ["a.safetensors", "b.pt", "c.pt", "microwan/lexicons.safetensors"]
    assert rig.run(LOADER, name="b.pt")[0].config.d_model == 8
    with pytest.raises(CorruptFileError):
        rig.run(LOADER, name="c.pt")
    with pytest.raises(ConfigError, match="there is no file"):
        rig.run(LOADER, name="../a.safetensors")
