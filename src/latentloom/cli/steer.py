"""`latentloom steer`: act inside the blocks of a frozen model, and measure it; each verb has a module of its own."""

import typer

from latentloom.cli import steer_apply, steer_control, steer_measure, steer_sweep

app = typer.Typer(help="Act inside the blocks of a frozen model, and measure it.", add_completion=False)

app.command("apply")(steer_apply.command)
app.command("measure")(steer_measure.command)
app.command("sweep")(steer_sweep.command)
app.add_typer(steer_control.app, name="control")
app.add_typer(steer_control.app, name="control")
