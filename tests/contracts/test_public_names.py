"""The names that packages promise. A change here is a change for everyone who imports them."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"

PUBLIC = {
    "latentloom.comfy.hosts": "Host host_named",
    "latentloom.delta": (
        "DeltaConfig EmbeddingDelta apply_deltas apply_to_prompt_embeds apply_to_text_embeddings "
        "apply_to_wan_video_embeds load_embdelta_adapter save_adapter"
    ),
    "latentloom.drifting": (
        "DriftConfig MaeConfig PatchRefiner compute_drift drifting_loss drifting_losses load_refiner run_drift"
    ),
    "latentloom.finetune": (
        "FinetuneConfig Options applied_adapter load_text_encoder_file merge_adapter read_adapter read_text_encoder "
        "run_finetune"
    ),
    "latentloom.finetune.cache": "CacheModels CacheReport CachedDataset cache_dataset",
    "latentloom.keyframes": (
        "SinkhornWarper add_frame_noise adjacent_targets fit_warper frame_confidence frame_distance frame_levels "
        "interpolate_frames interpolate_harmonic interpolate_idw interpolation_errors level_counts moving_share "
        "nested_frame_masks nested_masks patchify replace_keyframes unpatchify"
    ),
    "latentloom.micro": "default_checkpoint",
    "latentloom.runs": (
        "Config Report RunFolder RunRecord TrainingFacts all_reduce_mean_ choose_device find_run is_distributed "
        "launch_processes list_runs load_config process_rank seed_everything to_toml track"
    ),
    "latentloom.steering": (
        "ActivationsPayload BlockActivations ControlVector DirectionPayload Operation Plan PlanePayload "
        "PromptPayload RowsPayload ablate_span add amplify apply_plan bind block_strengths boost_projection "
        "build_plan capture_activations combine compare difference fit_control functional_effect "
        "inject_direct interpolate learn_control load_activations load_control load_plan_config "
        "measure_bottleneck multiply noised normalize project record_pairs relative_difference "
        "save_activations save_control scale steer weighted_sum"
    ),
    "latentloom.training": (
        "Curve TrainedWeights WeightAverage load_state make_optimizers read_curve save_state set_learning_rate "
        "trapezoid"
    ),
    "latentloom.tensors": "SentenceVector TextEmbeddings VideoLatents",
    "latentloom.storage": (
        "EmbeddingStore atomic_write encode_mp4 load_object read_header read_module read_npz read_pt read_video "
        "replace_folder require_writable save_module save_object write_contact_sheet write_json write_text write_video"
    ),
}


def promised() -> dict[str, str]:
    """Every package with an `__all__`, read without importing it."""
    names = {}
    for path in sorted(SOURCE.rglob("__init__.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
                package = ".".join(path.parent.relative_to(SOURCE).parts)
                names[package] = " ".join(ast.literal_eval(node.value))
    return names


def test_the_packages_promise_exactly_the_pinned_names():
    assert promised() == PUBLIC


@pytest.mark.parametrize("package", PUBLIC)
def test_every_promised_name_is_there(package):
    module = import_module(package)
    assert [name for name in PUBLIC[package].split() if not hasattr(module, name)] == []
