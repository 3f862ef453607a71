"""`latentloom bridge smoke`: whether a backbone works under a bridge, once each way; skipped without its weights."""

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
    """Run each direction once on a backbone, with random vectors.

    Skipped, in one line and without failing, where its weights are not on this machine.
    """
    from latentloom.bridge.offline import offline_environment

    offline_environment()
    settings = bridge_settings(config_name, config, overrides)
    from latentloom.bridge.pretrained_folder import pretrained_folder
    from latentloom.errors import CorruptFileError, FileError

    try:
        pretrained_folder(settings.model)
    except CorruptFileError:  # the weights are there, and wrong
        raise
    except FileError as missing:
        typer.echo(f"skipped: {missing}")
        emit_json(json_file, {"skipped": str(missing), "steps": []})
        return
    from dataclasses import asdict

    from latentloom.bridge.smoke import smoke

    steps = smoke(settings)
    for step in steps:
        typer.echo(f"{step.name:<15} {step.seconds:8.2f} s  {step.result}")
    emit_json(json_file, {"skipped": None, "steps": [asdict(step) for step in steps]})
