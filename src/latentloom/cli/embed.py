"""`latentloom embed`: prompts to text embeddings, and operations on files of them; each verb has its own module."""

from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup

from latentloom.cli import embed_add, embed_amplify, embed_diff, embed_encode, embed_interpolate

if TYPE_CHECKING:  # typer carries its own click and exports neither name
    from typer._click.core import Command, Context


class EmbedGroup(TyperGroup):
    """Takes what does not begin with a verb as prompts: `latentloom embed "a red circle"` is `embed encode …`."""

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = self._with_verb(ctx, args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: "Context", args: list[str]) -> "tuple[str | None, Command | None, list[str]]":
        if args[0] not in self.commands:
            args = self._with_verb(ctx, args)
        return super().resolve_command(ctx, args)

    def _with_verb(self, ctx: "Context", args: list[str]) -> list[str]:
        ctx.meta[embed_encode.VERBS_NOT_GIVEN] = list(self.commands)
        return ["encode", *args]


app = typer.Typer(
    cls=EmbedGroup,
    help="Encode prompts into text embeddings; subtract, add, interpolate and amplify files of them. "
    "Without a verb, the words are prompts to encode.",
    add_completion=False,
)

app.command("encode")(embed_encode.command)
app.command("diff")(embed_diff.command)
app.command("add")(embed_add.command)
app.command("interpolate")(embed_interpolate.command)
app.command("amplify")(embed_amplify.command)
