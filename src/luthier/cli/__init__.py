"""The command line: one small file a command, found by looking into this folder.

`train.py` is `luthier train` and exports a function `train`; `config/schema.py` is `luthier config schema` and exports
`config_schema`. A file whose name starts with an underscore is no command. The first line of a file's docstring is its
line in `luthier --help`; the docstring of the function is its help, and ends with a block that starts with `Example:`,
one command a line. A file is imported only when its command is used.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect as introspection  # `inspect` is a command of this folder
import io
import re
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from luthier.errors import EnvironmentProblem, LuthierError
from luthier.system.faults import fault
from luthier.system.floors import check_address_space, check_floors
from luthier.system.outgoing import block_kernels
from luthier.system.quiet import hush
from luthier.system.streams import OUT, complain, hide_secrets_in_tracebacks, is_lost, open_all, show, silence

WrongUsage: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What typer raises of a command line that is none; it does not export the class."""

FOLDER = Path(__file__).parent
BUG_EXIT_CODE = 1
INTERRUPTED_EXIT_CODE = 130
BROKEN_PIPE_EXIT_CODE = 141

ABOUT = "Fine-tune open language models on your own data: one short YAML file and one command."
EXAMPLES = """
Example:
  luthier init train.jsonl --model org/name
  luthier train mine.yaml
  luthier chat runs/train
"""


def _is_unknown_option(error: Any) -> bool:
    return getattr(error, "option_name", None) is not None and "No such option" in error.format_message()


def _is_key(flag: str) -> bool:
    from luthier.config.translation import is_key

    return is_key(flag.lstrip("-").replace("-", "_"))


def command_names() -> list[str]:
    """All commands, as typed: `train`, `config schema`."""
    return sorted(path.stem.replace("_", " ").strip() for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def short_help(name: str) -> str:
    """Of a command the first line of its file's docstring, read without importing the file; of a group what is in it."""
    file = FOLDER / f"{name.replace(' ', '_')}.py"
    if file.is_file():
        return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    inner = [full.removeprefix(f"{name} ") for full in command_names() if full.startswith(f"{name} ")]
    return f"{', '.join(inner).capitalize()} of {name}."


class Command(TyperCommand):
    """A command whose help ends with examples, a line each, and which answers flags of other programs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except WrongUsage as error:
            if not _is_unknown_option(error):
                raise
            from luthier.cli._pasted import answered

            raise answered(ctx.command_path, self.get_params(ctx), given) or error from None

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        formatter.write(f"\n{self.epilog}\n")


class Commands(TyperGroup):
    """The commands whose names start with `prefix`. Their files are read for a list of them, and imported when one is used."""

    prefix: str = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """A line of another program (its script, `--stage sft`) is one of `train`, which answers it."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except WrongUsage as error:
            if self.prefix or not _is_unknown_option(error) or not _is_key(error.option_name):
                raise
            return super().parse_args(ctx, ["train", *given])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        formatter.write(f"\n{self.epilog}\n")

    def list_commands(self, ctx: Any) -> list[str]:
        names = [name.removeprefix(self.prefix) for name in command_names() if name.startswith(self.prefix)]
        return list(dict.fromkeys(name.partition(" ")[0] for name in names))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        full = self.prefix + cmd_name
        if full in command_names():
            return load_command(full.replace(" ", "_"))
        return _group(full + " ") if cmd_name in self.list_commands(ctx) else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short_help(self.prefix + name)) for name in self.list_commands(ctx)])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands = dict.fromkeys(self.list_commands(ctx), self)  # whose names "did you mean" chooses from
        if not self.prefix and args[0] not in self.commands and any(word.endswith(".py") for word in args):
            args = ["train", *args]
        return super().resolve_command(ctx, args)

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False  # typer imports pydantic to find that None is no bool: longer than all the rest
        return option


def _group(prefix: str) -> Commands:
    names = [name.removeprefix(prefix) for name in command_names() if name.startswith(prefix)]
    name = prefix.strip()
    help_text, epilog = _help(f"{short_help(name)}\n\nExample:\n  luthier {prefix}{names[0]}")
    group = Commands(
        name=name.rpartition(" ")[2], help=help_text, epilog=epilog, rich_markup_mode=None, no_args_is_help=True
    )
    group.prefix = prefix
    return group


def load_command(module_name: str) -> Any:
    """The click command of a file of this folder."""
    module = importlib.import_module(f"luthier.cli.{module_name}")
    function: Callable[..., None] = getattr(module, module_name)
    help_text, epilog = _help(function.__doc__ or module.__doc__ or "")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(module_name.rpartition("_")[2], cls=Command, help=help_text, epilog=epilog)(_guarded(function))
    return typer.main.get_command(app)


def _help(docstring: str) -> tuple[str, str]:
    """(the text, one line a paragraph; the examples as they stand)."""
    text, *rest = re.split(r"^(?=Examples?:)", introspection.cleandoc(docstring), maxsplit=1, flags=re.MULTILINE)
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")]
    return "\n\n".join(paragraphs), "".join(rest)


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    """The function with an option `--debug`, and a quiet end on ctrl-c and on a closed pipe."""
    signature = introspection.signature(function)
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = [parameter.replace(annotation=hints[name]) for name, parameter in signature.parameters.items()]
    hints["debug"] = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
    if "debug" not in signature.parameters:
        parameters.append(
            introspection.Parameter(
                "debug", introspection.Parameter.KEYWORD_ONLY, default=False, annotation=hints["debug"]
            )
        )

    @functools.wraps(function)
    def guarded(**arguments: Any) -> None:
        if "debug" not in signature.parameters:
            arguments.pop("debug")
        try:
            check_floors()
            check_address_space()
            function(**arguments)
            sys.stdout.flush()
        except KeyboardInterrupt:
            complain("stopped by ctrl-c")
            raise typer.Exit(INTERRUPTED_EXIT_CODE) from None
        except BrokenPipeError:
            silence(OUT)
            raise typer.Exit(BROKEN_PIPE_EXIT_CODE) from None

    del guarded.__wrapped__  # or its signature would be read, not ours
    guarded.__signature__ = introspection.Signature(parameters)  # type: ignore[attr-defined]
    guarded.__annotations__ = hints
    return guarded


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        show(f"luthier {version('luthier')}")
        raise typer.Exit


def _app() -> Any:
    help_text, epilog = _help(ABOUT + "\n" + EXAMPLES)
    app = typer.Typer(
        cls=Commands, add_completion=False, rich_markup_mode=None, no_args_is_help=True, help=help_text, epilog=epilog
    )

    @app.callback()
    def options(
        version: Annotated[
            bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        pass

    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; errors end in one screen on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    open_all()
    block_kernels()
    hush()
    if "--debug" in given:
        hide_secrets_in_tracebacks()
    # What other libraries will rename one day is no news for the person at the screen.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    try:
        code: int | None = _app().main(args=given, prog_name="luthier", standalone_mode=False)
        return code or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except WrongUsage as error:
        with io.StringIO() as said:
            error.show(said)
            complain(said.getvalue().rstrip())
        return int(error.exit_code)
    except BrokenPipeError:  # of a help page, as `| head` does
        silence(OUT)
        return BROKEN_PIPE_EXIT_CODE
    except LuthierError as error:
        if "--debug" in given:
            raise
        complain(error)
        return error.exit_code
    except Exception as error:  # a fault of the machine that nobody has told of, or a bug of ours
        if "--debug" in given:
            raise
        if why := fault(error):
            place = getattr(error, "filename", None) or ("standard output" if is_lost() else "this machine")
            complain(EnvironmentProblem(str(place), why, "", "mend it, then the same command"))
            return EnvironmentProblem.exit_code
        complain(
            f"{type(error).__name__}: {str(error)[:500]}\n"
            "This is a bug of luthier. The traceback: the same command with --debug"
        )
        return BUG_EXIT_CODE
