"""`latentloom steer control`: directions that move what a prompt says; each verb has a module of its own."""

import typer

from latentloom.cli import steer_control_apply, steer_control_fit, steer_control_list

app = typer.Typer(help="Fit, apply and list control vectors.", add_completion=False)

app.command("fit")(steer_control_fit.command)
app.command("apply")(steer_control_apply.command)
app.command("list")(steer_control_list.command)
