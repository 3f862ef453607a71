"""`latentloom drift`: refine interpolated samples in one step; each verb has a module of its own."""

import typer

from latentloom.cli import (
    drift_complete,
    drift_evaluate,
    drift_evaluate_representation,
    drift_make_shards,
    drift_quantize,
    drift_train,
    drift_train_mae,
)

app = typer.Typer(
    help="Refine interpolated samples in one step, by drifting.",
    add_completion=False,
    rich_markup_mode=None,  # whose tables cut long option names off
)

app.command("train")(drift_train.command)
app.command("train-mae")(drift_train_mae.command)
app.command("complete")(drift_complete.command)
app.command("evaluate")(drift_evaluate.command)
app.command("make-shards")(drift_make_shards.command)
app.command("quantize")(drift_quantize.command)
app.command("evaluate-representation")(drift_evaluate_representation.command)
