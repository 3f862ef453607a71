"""`latentloom delta`: learn and apply an Embedding Delta adapter; each verb has a module of its own."""

import typer

from latentloom.cli import delta_apply, delta_cache, delta_eval, delta_pairs, delta_train

app = typer.Typer(help="Learn and apply an Embedding Delta adapter.", add_completion=False)

app.command("pairs")(delta_pairs.command)
app.command("cache")(delta_cache.command)
app.command("train")(delta_train.command)
app.command("eval")(delta_eval.command)
app.command("apply")(delta_apply.command)
