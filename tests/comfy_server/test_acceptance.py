"""An edit in a real ComfyUI, in both hosts: exact at both ends of its strength, and gone with its node."""

import pytest
import torch
from comfy_server.api import Client, FailedError
from comfy_server.breaking_nodes import FAILURE
from comfy_server.graphs import EDITOR, GREEN, MODEL, SAMPLER, HostName, graph
from torch import Tensor

HALF = {"injection_strength": 0.5, "block_activations": "late_blocks", "injection_mode": "both"}


@pytest.fixture(scope="module")
def baseline(client: Client, host: HostName) -> Tensor:
    """The clip without any node of ours but the loader."""
    return client.run(graph(host)).latent


@pytest.mark.parametrize(
    "edit", [{"injection_strength": 0.0}, {"block_activations": "000000"}, {"enable_patching": False}]
)
def test_an_edit_of_nothing_is_no_node_bit_for_bit(client, host, baseline, edit):
    assert torch.equal(client.run(graph(host, edit)).latent, baseline)


def test_all_blocks_at_strength_1_are_the_other_prompt(client, host, baseline):
    swapped = client.run(graph(host, prompt=GREEN)).latent
    assert torch.equal(client.run(graph(host, {})).latent, swapped)
    assert not torch.equal(swapped, baseline)


def test_half_an_edit_is_neither_prompt(client, host, baseline):
    edited = client.run(graph(host, HALF)).latent
    assert edited.isfinite().all()
    assert not torch.equal(edited, baseline)
    assert not torch.equal(edited, client.run(graph(host, prompt=GREEN)).latent)


@pytest.mark.parametrize("without", [None, {**HALF, "enable_patching": False}], ids=["bypassed", "disabled"])
def test_a_run_after_an_edited_one_is_the_baseline(client, host, baseline, without):
    client.run(graph(host, HALF, seed=1))
    after = client.run(graph(host, without, seed=0))
    assert MODEL in after.cached  # the same model
    assert SAMPLER not in after.cached
    assert torch.equal(after.latent, baseline)


def test_guidance_of_1_and_of_7_differ_and_both_show_the_edit(client, host):
    one, seven = (client.run(graph(host, HALF, cfg=cfg)).latent for cfg in (1.0, 7.0))
    assert not torch.equal(one, seven)
    assert not torch.equal(one, client.run(graph(host, cfg=1.0)).latent)
    assert not torch.equal(seven, client.run(graph(host, cfg=7.0)).latent)


@pytest.mark.parametrize("mode", ["context", "hidden_states", "both"])
def test_an_error_while_sampling_leaves_the_model_clean(client, host, baseline, mode):
    edit = {**HALF, "injection_mode": mode}
    whole = client.run(graph(host, edit)).latent
    with pytest.raises(FailedError, match=FAILURE):
        client.run(graph(host, edit, seed=2, fails_at=4))
    client.run(graph(host, seed=3))  # so that what is compared is sampled anew
    after = client.run(graph(host))
    assert SAMPLER not in after.cached
    assert torch.equal(after.latent, baseline)
    assert torch.equal(client.run(graph(host, edit)).latent, whole)


def test_an_interrupted_run_leaves_the_model_clean(client, host, baseline):
    running = client.queue(graph(host, HALF, seed=4, steps=900))
    client.wait_until_sampling(running)
    client.interrupt()
    with pytest.raises(FailedError):
        client.wait(running)
    client.run(graph(host, seed=3))
    assert torch.equal(client.run(graph(host)).latent, baseline)


def test_the_same_graph_gives_the_same_clip_with_and_without_caches(client, host):
    first = client.run(graph(host, HALF)).latent
    client.run(graph(host, HALF, seed=5))
    again = client.run(graph(host, HALF))
    assert EDITOR in again.cached
    assert SAMPLER not in again.cached
    assert torch.equal(again.latent, first)
    client.free()
    anew = client.run(graph(host, HALF))
    assert not anew.cached
    assert torch.equal(anew.latent, first)


def test_a_run_in_the_queue_behind_another_is_not_affected_by_it(client, host):
    graphs = [graph(host, HALF, steps=12), graph(host, steps=12), graph(host, {**HALF, "side": "both"}, steps=12)]
    alone = []
    for one in graphs:
        client.free()
        alone.append(client.run(one).latent)
    client.free()
    queued = [client.queue(one) for one in graphs]
    for prompt_id, expected in zip(queued, alone, strict=True):
        assert torch.equal(client.wait(prompt_id).latent, expected)
