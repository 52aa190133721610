"""Other engines, each run in an environment of its own: their pins fight ours."""

import json
import subprocess
from pathlib import Path
from typing import Any


class Rival:
    """A rival's process: answers one JSON request after another. `python` is the interpreter that has it installed."""

    def __init__(self, python: str, script: str) -> None:
        path = Path(__file__).with_name(script)
        self.process = subprocess.Popen([python, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, **request: Any) -> dict[str, Any]:
        """The answer to `request`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
