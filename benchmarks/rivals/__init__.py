"""Other engines, each run in an environment of its own: their pins fight ours. Ours runs the same way beside them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any


class Rival:
    """A rival's process: answers one JSON request after another. `python` is the interpreter that has it installed.

    `engine` is its name and version.
    """

    def __init__(self, python: str, script: str) -> None:
        path = Path(__file__).with_name(script)
        # models are folders here: nothing has to be asked of a hub
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        # what pip installed is compiled already: nobody should have to compile its modules in every process
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.script = script
        self.process = subprocess.Popen(
            [python, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.engine: str = self._answer()["engine"]

    def __call__(self, **request: Any) -> dict[str, Any]:
        """The answer to `request`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.script} ended without an answer: what it printed says why")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def engine_of(python: str, script: str) -> str:
    """Name and version of the engine that `script` runs."""
    rival = Rival(python, script)
    rival.close()
    return rival.engine
