"""`latentloom inspect`: what weights are, and what a fine-tune changed; each verb has a module of its own."""

import typer

from latentloom.cli import (
    inspect_attention,
    inspect_checkpoint,
    inspect_encoder_drift,
    inspect_keys,
    inspect_lora_delta,
)

app = typer.Typer(help="Tell what weights are, and what a fine-tune changed.", add_completion=False)

app.command("checkpoint")(inspect_checkpoint.command)
app.command("keys")(inspect_keys.command)
app.command("lora-delta")(inspect_lora_delta.command)
app.command("attention")(inspect_attention.command)
app.command("encoder-drift")(inspect_encoder_drift.command)
