"""How the command ends: its exit codes, and its errors in one sentence.

0: done and verified. 1: done, but below what was asked for. 2: bad usage or bad input, and nothing was
written. 130: interrupted. A reader that closes its pipe early, such as ``head``, changes none of them.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import click

from onnxq.cli.closed_pipe import unbreakable
from onnxq.cli.compiled_programs import keep_compiled_programs
from onnxq.errors import OnnxqError
from onnxq.report.wording import printable

DONE, BELOW, REFUSED, INTERRUPTED = 0, 1, 2, 130


class Shell(click.Group):
    """A group whose usage errors are one sentence on stderr and end with 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and leave the process with its exit code."""
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:  # a sign that the terminal's encoding lacks must not end a run
                reconfigure(errors="replace")
        keep_compiled_programs()
        with redirect_stdout(unbreakable(sys.stdout)), redirect_stderr(unbreakable(sys.stderr)):
            status = self._status(args, prog_name, complete_var, **extra)
        sys.exit(status)

    def _status(self, args: Sequence[str] | None, prog_name: str | None, complete_var: str | None, **extra: Any) -> Any:
        """The exit code of a command line."""
        try:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            return REFUSED
        except click.ClickException as error:
            complain(error.format_message())
            return REFUSED
        except click.Abort:
            return INTERRUPTED


class Verb(click.Command):
    """A subcommand whose errors become a sentence and an exit code; it has the parameter ``debug``."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; its value, an exit code, is the process's."""
        try:
            return super().invoke(ctx)
        except OnnxqError as error:
            _trace(ctx)
            complain(str(error))
            return REFUSED
        except KeyboardInterrupt:
            _trace(ctx)
            folder = ctx.params.get("work_dir")
            advice = f"; go on with the same command and --work-dir {folder} --resume" if folder else ""
            complain(f"interrupted, nothing was written{advice}.")
            return INTERRUPTED
        except (click.exceptions.Exit, click.ClickException):  # Shell and click end these
            raise
        except Exception as error:
            _trace(ctx)
            kind = type(error).__name__
            complain(f"unexpected {kind} ({error}); run again with --debug, and report what it prints.")
            return REFUSED


def complain(message: str) -> None:
    """Print an error as one sentence on stderr."""
    click.echo(f"onnxq: {printable(' '.join(message.split()))}", err=True)


def _trace(ctx: click.Context) -> None:
    if ctx.params.get("debug"):
        traceback.print_exc()
