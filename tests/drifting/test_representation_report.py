"""Families of prompts, plots, and the evaluation of a whole subject as figures and a page."""

import importlib.util
import json

import pytest
import torch

from latentloom.drifting.config import DataConfig
from latentloom.drifting.encoders import resnet_encoder
from latentloom.drifting.representation import plots
from latentloom.drifting.representation.evaluate import evaluate_representation
from latentloom.drifting.representation.families import prompt_families
from latentloom.drifting.representation.report import write_report
from latentloom.drifting.representation.subject import Subject, images_by_encoder
from latentloom.errors import ShapeError

KINDS = ("a red fox runs", "a blue whale swims", "two green parrots talk")


def prompts_of(num):
    generator = torch.Generator().manual_seed(0)
    directions = 5 * torch.randn(3, 6, generator=generator)
    kinds = torch.arange(num) % 3
    texts = directions[kinds] + 0.1 * torch.randn(num, 6, generator=generator)
    return texts, [f"{KINDS[kind]} today" for kind in kinds.tolist()], kinds


@pytest.fixture
def subject():
    texts, prompts, kinds = prompts_of(60)
    generator = torch.Generator().manual_seed(1)

    def pictures(rows):
        return torch.randint(0, 256, (len(rows), 2, 8, 8, 3), generator=generator).to(torch.uint8)

    return Subject(
        name="codebook test",
        data="60 clips",
        vectors=torch.cat([texts, torch.randn(60, 4, generator=generator)], dim=1),
        labels=kinds,
        class_names=("0", "1", "2", "3"),
        counts=torch.tensor([20, 20, 20, 0]),
        texts=texts,
        prompts=prompts,
        keyframes=torch.randn(60, 10, generator=generator),
        peak=2.0,
        pictures=pictures,
        clips=pictures,
        fps=8.0,
        missing=("Something is not there.",),
    )


def test_prompts_of_a_kind_are_a_family_named_by_its_words():
    texts, prompts, kinds = prompts_of(61)
    families = prompt_families(texts, prompts, max_families=3)
    assert len(families.names) == 3
    assert len(torch.stack([kinds, families.labels], dim=1).unique(dim=0)) == 3
    named = {families.names[int(families.labels[place])] for place in range(3)}
    assert {frozenset(name.split()) for name in named} == {
        frozenset({"red", "fox", "runs"}),
        frozenset({"blue", "whale", "swims"}),
        frozenset({"green", "parrots", "talk"}),
    }
    assert families.labels[0] == 0  # the largest is the first


def test_there_are_no_more_families_than_different_prompts():
    families = prompt_families(torch.ones(5, 3), ["same words"] * 5)
    assert families.labels.tolist() == [0] * 5
    assert families.names == ("family 1",)


def test_prompts_without_words_have_families_with_numbers():
    assert prompt_families(torch.eye(3), ["", " ", "!"], max_families=2).names == ("family 1", "family 2")
    with pytest.raises(ShapeError, match="2 texts for 1 prompts"):
        prompt_families(torch.eye(2), ["one"])


def test_tsne_keeps_groups_together():
    texts, _, kinds = prompts_of(60)
    layout = plots.tsne(texts)
    centres = torch.stack([layout[kinds == kind].mean(dim=0) for kind in range(3)])
    assert torch.equal(torch.cdist(layout, centres).argmin(dim=1), kinds)


def test_umap_keeps_groups_together():
    pytest.importorskip("umap")
    texts, _, kinds = prompts_of(60)
    layout = plots.umap(texts)
    centres = torch.stack([layout[kinds == kind].mean(dim=0) for kind in range(3)])
    assert torch.equal(torch.cdist(layout, centres).argmin(dim=1), kinds)


def test_a_subject_is_measured_in_every_respect(subject):
    evaluation = evaluate_representation(subject, are_pseudo_classes=True)
    figures = json.loads(json.dumps(evaluation.to_json()))
    assert figures["occupancy"]["empty_share"] == 0.25
    assert figures["separation"]["separation/ratio"] < 0.6
    assert figures["retrieval"]["retrieval/top1"] == 1
    assert figures["retrieval"]["families/retrieval/top5"] == 1
    assert figures["agreement"]["agreement/text_cosine"] > 0.9
    assert figures["kernel"]["kernel/0.2/positive_share"] > 0.5
    assert {family["size"] for family in figures["families"]} == {20}
    assert figures["missing"] == ["Something is not there."]
    assert len(figures["readings"]) == 10


def test_equal_seeds_give_equal_figures(subject):
    first, again = (evaluate_representation(subject, are_pseudo_classes=True, seed=3).to_json() for _ in range(2))
    assert first == again


def test_the_page_shows_every_section_and_says_what_is_missing(subject, tmp_path):
    evaluation = evaluate_representation(subject, are_pseudo_classes=True)
    write_report(tmp_path / "report.html", evaluation, temperatures=(0.02, 0.05, 0.2))
    page = (tmp_path / "report.html").read_text()
    for heading in ("What to read off", "What is missing", "Occupancy", "Drifting kernel", "In the plane", "Exemplars"):
        assert f"{heading}</h2>" in page
    assert "Something is not there." in page
    assert "Nearest neighbours</h2>" in page
    assert page.count("<video") == 6
    assert ("No UMAP: umap-learn is not installed" in page) == (importlib.util.find_spec("umap") is None)


def test_labelled_images_are_evaluated_by_an_encoder():
    config = DataConfig(dataset="fake", image_size=16, fake_classes=3, fake_images=90)
    subject = images_by_encoder(
        lambda channels: resnet_encoder(None, channels, seed=0), config, name="random", max_samples=20, seed=0
    )
    assert len(subject.vectors) == 20
    assert subject.counts.sum() == 27
    # the means of four maps and the deviations of three (the last one has a single cell), each with a variance of 1
    assert float(subject.vectors.var(dim=0, correction=0).sum()) == pytest.approx(7, rel=1e-4)
    assert subject.pictures(torch.tensor([0, 1])).shape == (2, 1, 16, 16, 3)
    evaluation = evaluate_representation(subject, are_pseudo_classes=False)
    assert evaluation.families is None
    assert any("no prompts" in line for line in evaluation.missing)
    assert "agreement/text_cosine" not in evaluation.agreement
