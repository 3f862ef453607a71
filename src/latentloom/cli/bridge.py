"""`latentloom bridge`: between texts and sentence vectors; each verb has a module of its own."""

import typer

from latentloom.cli import (
    bridge_decode,
    bridge_embed,
    bridge_encode,
    bridge_evaluate,
    bridge_fetch,
    bridge_interpolate,
    bridge_smoke,
    bridge_train,
)

app = typer.Typer(
    help="Turn texts into sentence vectors and back on a pretrained language model.",
    add_completion=False,
    rich_markup_mode=None,  # whose tables cut long option names off
)

app.command("fetch")(bridge_fetch.command)
app.command("embed")(bridge_embed.command)
app.command("train")(bridge_train.command)
app.command("evaluate")(bridge_evaluate.command)
app.command("encode")(bridge_encode.command)
app.command("decode")(bridge_decode.command)
app.command("interpolate")(bridge_interpolate.command)
app.command("smoke")(bridge_smoke.command)
