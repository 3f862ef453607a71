"""The weights of an earlier training as the start of the next."""

from pathlib import Path

from latentloom.bridge.checkpoint import export_file, read_export
from latentloom.bridge.model import LatentBridge
from latentloom.errors import CheckpointError

_PARTS = ("standardizer.", "latent_prefix.", "text_to_latent.")


def start_from(bridge: LatentBridge, export: Path) -> None:
    """Give a bridge the weights of an export, and the standardizers that these were trained with.

    Args:
        bridge: as it was made; what the training leaves alone is frozen already.
        export: a file, or the folder of a run, whose newest one is taken.

    Raises:
        FileError, CorruptFileError: it is not there, or damaged.
        CheckpointError: it is something else, was made on another backbone, or these settings do not train all that it
            holds.
    """
    path = export_file(export)
    weights, about = read_export(path)
    backbone = bridge.backbone
    if about.backbone.fingerprint != backbone.fingerprint:
        raise CheckpointError(
            f"{path} was trained on {about.backbone.name} {about.backbone.fingerprint}, and this run is on "
            f"{backbone.name} {backbone.fingerprint}; give an export of the same backbone"
        )
    own = bridge.state_dict()
    if missing := {name for name in own if name.startswith(_PARTS)} - weights.keys():
        raise CheckpointError(f"{path} lacks {min(missing)}; export it again")
    trained = {name for name, weight in bridge.named_parameters(remove_duplicate=False) if weight.requires_grad}
    for name, weight in weights.items():
        if name not in own or (name not in trained and not name.startswith(_PARTS)):
            raise CheckpointError(f"{path} holds {name}, which this run does not train; give it the settings to do so")
        if weight.shape != own[name].shape:
            raise CheckpointError(
                f"{path} holds {name} of the shape {tuple(weight.shape)}, and this run's is {tuple(own[name].shape)}; "
                "give it the settings that the export was made with"
            )
    bridge.load_state_dict(weights, strict=False)
