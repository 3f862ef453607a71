"""The `latentloom` command: nouns that load when asked for, and what each kind of failure looks like.

Exit codes: 0 done; 2 the user's mistake, said in one line; 1 a bug, with its traceback; 130 interrupted.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from latentloom.errors import LatentLoomError

if TYPE_CHECKING:  # typer carries its own click and exports neither name
    from typer._click.core import Command, Context


class Noun(NamedTuple):
    module: str
    help: str


NOUNS: dict[str, Noun] = {
    "demo": Noun("latentloom.cli.demo", "Run the main job: prompts in, videos out, the effect measured."),
    "generate": Noun("latentloom.cli.generate", "Make a video from a prompt."),
    "embed": Noun("latentloom.cli.embed", "Encode prompts into text embeddings, and do arithmetic with them."),
    "delta": Noun("latentloom.cli.delta", "Learn and apply an Embedding Delta adapter."),
    "steer": Noun("latentloom.cli.steer", "Act inside the blocks of a frozen model, and measure it."),
    "finetune": Noun("latentloom.cli.finetune", "Train the text encoder, or a LoRA of the DiT."),
    "bridge": Noun("latentloom.cli.bridge", "Turn texts into sentence vectors and back on a language model."),
    "drift": Noun("latentloom.cli.drift", "Train a refiner of interpolated images that needs one step."),
    "micro": Noun("latentloom.cli.micro", "Build, score and read MicroWan, the embedded default model."),
    "inspect": Noun("latentloom.cli.inspect", "Tell what weights are, and what a fine-tune changed."),
    "convert": Noun("latentloom.cli.convert", "Rewrite a checkpoint in another layout, bit for bit."),
    "store": Noun("latentloom.cli.store", "Keep text embeddings by their content, find and compare them."),
    "runs": Noun("latentloom.cli.runs", "List past runs, compare them, and decide what to keep."),
}


def main() -> None:
    """Run the command line of this process and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Exit code of one command line; a bug's exception passes through.

    Args:
        arguments: what follows `latentloom` on the command line; none at all asks for the help page.
    """
    group = typer.main.get_group(app)
    try:
        outcome = group.main(list(arguments) or ["--help"], prog_name="latentloom", standalone_mode=False)
    except typer.TyperException as mistake:
        return _refuse(_usage_line(mistake))
    except LatentLoomError as mistake:
        return _refuse(str(mistake))
    except OSError as error:
        if not _is_about_an_argument(error, arguments):
            raise
        return _refuse(f"{error.filename}: {error.strerror}; give a path that this command can use")
    except typer.Abort:  # a question that was not answered
        return 130
    return outcome or 0


class NounGroup(TyperGroup):
    """Shows every noun from the table alone and imports a noun's module once it is called."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        for name, noun in NOUNS.items():
            self.add_command(TyperCommand(name, help=noun.help))

    def resolve_command(self, ctx: "Context", args: list[str]) -> "tuple[str | None, Command | None, list[str]]":
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_noun(name) if name else None, rest

    def invoke(self, ctx: "Context") -> None:
        super().invoke(ctx)  # a command's return value is not an exit code


def load_noun(name: str) -> "Command":
    """The command or group behind a noun of the table, with its module imported."""
    module = import_module(NOUNS[name].module)
    if hasattr(module, "app"):
        group = typer.main.get_group(module.app)
        group.name, group.no_args_is_help = name, False  # a bare noun is a mistake like any other: one line
        return group
    single = typer.Typer(add_completion=False)
    single.command(name, cls=getattr(module, "command_class", None))(module.command)
    return typer.main.get_command(single)


def print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"latentloom {version('latentloom')}")
        raise typer.Exit
    return wanted


# An option is the same with dashes and underscores; the parser applies this to option names, never to values.
_EITHER_SPELLING = {"token_normalize_func": lambda token: token.replace("_", "-")}

app = typer.Typer(name="latentloom", cls=NounGroup, add_completion=False, context_settings=_EITHER_SPELLING)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the library's log on standard error.")] = False,
) -> None:
    """Study and adapt how Wan 2.x video diffusion models listen to text.

    Options may be written with dashes or underscores. Without --ckpt-root a command
    runs on MicroWan, the small model that comes with the package.
    """
    from latentloom.runs.logs import set_up_logs

    set_up_logs(verbose)


def _refuse(line: str) -> int:
    print("latentloom: " + " ".join(line.split()), file=sys.stderr)
    return 2


def _usage_line(mistake: typer.TyperException) -> str:
    """What was given (in the parser's own words), what is allowed there, and where to read on."""
    message = mistake.format_message().strip().replace("Value error, ", "").rstrip(".") + _refused_value(mistake)
    sentences = [message if message.endswith("?") else f"{message}."]
    context = getattr(mistake, "ctx", None)
    if context is not None:
        if hasattr(mistake, "option_name"):
            options = [name for option in context.command.get_params(context) for name in option.opts]
            sentences.append(f"Options: {', '.join(name for name in options if name.startswith('--'))}.")
        elif isinstance(context.command, TyperGroup):
            sentences.append(f"Commands: {', '.join(context.command.list_commands(context))}.")
        sentences.append(f"See `{context.command_path} --help`.")
    return " ".join(sentences)


def _refused_value(mistake: typer.TyperException) -> str:
    """The value itself, which the type checks behind an option leave out of their message."""
    from pydantic_core import ValidationError

    if not isinstance(mistake.__cause__, ValidationError):
        return ""
    value = repr(mistake.__cause__.errors(include_url=False)[0]["input"])
    return "" if value in mistake.format_message() else f"; given was {value}"


def _is_about_an_argument(error: OSError, arguments: Sequence[str]) -> bool:
    """Whether what failed is a path of the command line, alone or as `--option=path`, or lies on the way to it."""
    named = (part for argument in arguments for part in (argument, argument.partition("=")[2]) if part)
    failed = error.filename
    return isinstance(failed, str) and any(PurePath(path).is_relative_to(failed) for path in named)
