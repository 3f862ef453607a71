"""`latentloom bridge fetch`: have the backbone's files on this machine, so that all else runs offline."""

from __future__ import annotations

import typer

from latentloom.cli.bridge_settings import ConfigNameOption, ConfigOption, OverridesArgument, bridge_settings
from latentloom.cli.options import JsonOption, emit_json


def command(
    config_name: ConfigNameOption = None,
    config: ConfigOption = None,
    overrides: OverridesArgument = None,
    json_file: JsonOption = None,
) -> None:
    """Download the backbone of the settings, once.

    Its files go into model.pretrained_local_dir, or the hub's cache; what is complete already is not downloaded again.
    This is the only command of the bridge that uses the network. Without settings it prepares the embedded default,
    smollm2, which needs none.
    """
    settings = bridge_settings(config_name, config, overrides)
    from latentloom.bridge.fetch import fetch_backbone

    name = settings.model.pretrained_model_name_or_path
    fetched = fetch_backbone(settings.model)
    did = {
        "complete": "complete already; nothing was downloaded",
        "converted": "rewritten from GGUF as safetensors",
        "downloaded": "downloaded",
    }[fetched.done]
    at = f" at {fetched.commit}" if fetched.commit else ""
    typer.echo(f"{name}{at} in {fetched.folder}, {fetched.num_bytes / 1e9:.2f} GB: {did}")
    emit_json(
        json_file,
        {
            "model": name,
            "folder": str(fetched.folder),
            "commit": fetched.commit,
            "bytes": fetched.num_bytes,
            "done": fetched.done,
        },
    )
