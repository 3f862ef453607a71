"""The analyzer: figures of the true tokens, a picture of them, and one row in the store."""

import pytest
import torch
from comfy_nodes.hosts import Rig, assert_same_state, state_of

from latentloom.comfy.pictures import draw_tokens, figure_picture, principal_plane
from latentloom.comfy.store import open_store
from latentloom.storage.embedding_tensors import analyze

ANALYZER = "WanVideoEmbeddingAnalyzer"
RED = "A small red circle moves to the left."


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATENTLOOM_STORE", raising=False)


def analyzed(rig: Rig, **settings):
    return rig.run_and_show(ANALYZER, **{"text_embeds": rig.text(RED), "store_in_db": False, **settings})


def test_the_figures_are_those_of_the_true_tokens(rig):
    (report, _), messages = analyzed(rig, analysis_type="statistics")
    tokens = rig.pipeline.encode([RED]).tokens
    assert f"mean {tokens.mean():.4g}, std {tokens.std(correction=0):.4g}" in report
    norms = tokens.norm(dim=1)
    assert f"from {norms.min():.4g} to {norms.max():.4g}" in report
    assert f"prompt: statistics of {len(tokens)} tokens" in report
    assert messages["text"] == [report]
    assert "images" not in messages


def test_the_shape_is_as_the_host_gave_it_and_the_true_length_beside_it(rig):
    (report, _), _ = analyzed(rig, analysis_type="shape")
    length, dim = rig.pipeline.encode([RED]).tokens.shape
    given = [1, 512, dim] if rig.host == "native" else [length, dim]
    assert f"shape: {given} in float32 on cpu" in report
    assert f"true tokens {length} x {dim} channels" in report
    assert "statistics" not in report


def test_the_preview_has_effective_dimensions_and_a_picture_per_prompt(rig):
    (report, _), messages = analyzed(rig, analysis_type="pca_preview")
    found = analyze(rig.pipeline.encode([RED]).tokens)
    assert f"effective dimensions {found.effective_dim:.1f}" in report
    assert f"{found.num_components} components hold 90%" in report
    assert len(messages["images"]) == 1
    several = rig.run(
        "WanVideoVectorInterpolation", start_embeds=rig.text(RED), end_embeds=rig.text("A cross."), steps=2, position=-1
    )[0]
    (report, _), messages = analyzed(rig, text_embeds=several)
    assert "prompt 2 of 2: statistics" in report
    assert len(messages["images"]) == 2


def test_the_text_goes_through_and_stays_as_it_is(rig):
    text = rig.text(RED)
    before = state_of(text)
    (_, after), _ = analyzed(rig, text_embeds=text, store_in_db=True)
    assert after is text
    assert_same_state(text, before)


def test_it_is_stored_once_with_its_analysis_and_a_second_run_counts_as_a_use(rig):
    first, again = (analyzed(rig, analysis_type="shape", store_in_db=True)[0][0] for _ in range(2))
    store = open_store()
    (entry,) = store.entries()
    assert f"stored as {entry.id[:8]}" in first
    assert "rounded from float32 to float16" in first
    assert f"was there already as {entry.id[:8]}" in again
    assert (entry.num_accesses, entry.kind, store.stats().num_analyses) == (1, "given", 1)


def test_nothing_is_stored_where_that_is_off(rig):
    analyzed(rig)
    assert not open_store().path.exists()


class TestPicture:
    def test_the_same_tokens_give_the_same_picture(self):
        tokens = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
        first, second = (figure_picture(draw_tokens(tokens, "a prompt")) for _ in range(2))
        assert torch.equal(first, second)
        assert first.shape == (400, 900, 3)
        assert 0 == float(first.min()) < float(first.max()) == 1

    @pytest.mark.parametrize("length", [0, 1, 2, 100])
    def test_any_number_of_tokens_can_be_drawn(self, length):
        assert figure_picture(draw_tokens(torch.randn(length, 8), "few or many")).std() > 0

    def test_tokens_on_a_line_have_one_component_and_their_distances(self):
        steps = torch.tensor([0.0, 1, 2, 10])
        places, shares = principal_plane(steps[:, None] * torch.tensor([[0.6, 0.8, 0.0]]))
        assert shares == pytest.approx((1, 0), abs=1e-6)
        assert (places[:, 0] - places[0, 0]).abs().tolist() == pytest.approx(steps.tolist(), abs=1e-4)
        assert places[3, 0] > 0  # the farthest is at the positive end
        assert places[:, 1].abs().max() < 1e-2

    def test_the_plane_holds_what_a_decomposition_of_all_channels_finds(self):
        tokens = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
        places, shares = principal_plane(tokens.half())
        centred = tokens.half().float() - tokens.half().float().mean(dim=0)
        left, values, _ = torch.linalg.svd(centred, full_matrices=False)
        assert torch.allclose(places.abs(), (left * values)[:, :2].abs(), atol=1e-3)
        assert shares == pytest.approx((values.square() / values.square().sum())[:2].tolist(), abs=1e-4)
