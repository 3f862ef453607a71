"""`latentloom delta`: learn and apply an Embedding Delta adapter; each verb has a module of its own."""

import typer

from latentloom.cli import delta_cache, delta_pairs

app = typer.Typer(help="Learn and apply an Embedding Delta adapter.", add_completion=False)

app.command("pairs")(delta_pairs.command)
app.command("cache")(delta_cache.command)
