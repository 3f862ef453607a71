"""`latentloom store`: embeddings kept by their content; reading verbs and writing verbs have a module each."""

import typer

from latentloom.cli import store_read, store_write

app = typer.Typer(
    help="Keep text embeddings in one file: put, find, compare, clean and export them. "
    "The file is --db, else $LATENTLOOM_STORE, else latentloom/embeddings.duckdb in the user's data folder "
    "($XDG_DATA_HOME or ~/.local/share).",
    add_completion=False,
)

app.command("put")(store_write.put)
app.command("get")(store_read.get)
app.command("stats")(store_read.stats)
app.command("list")(store_read.list_)
app.command("show")(store_read.show)
app.command("search")(store_read.search)
app.command("operations")(store_read.operations)
app.command("clean")(store_write.clean)
app.command("vacuum")(store_write.vacuum)
app.command("export")(store_write.export)
