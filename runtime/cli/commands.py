"""How all commands are run."""

import os
import sys
from typing import Any

from typer.core import TyperGroup


class Commands(TyperGroup):
    """All commands, for which a reader who has seen enough, `head` for one, is no error."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # what is left unwritten must not raise again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
