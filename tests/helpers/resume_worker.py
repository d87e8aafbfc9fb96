"""A process that has everything imported and forks a training run for each line `CONFIG FOLDER resume|new` on its input.

Imports take seconds; a fork takes none, so a test can afford many kills. Each child notes the rows of every step that it begins.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from luthier import config, loop, run
from luthier.errors import LuthierError


def child(config_file: str, folder: str, resume: bool) -> int:
    whole = loop.optimizer_step

    def noted(job: loop.Job, step: int, samples: object, indices: object) -> object:
        with (Path(folder) / "rows.log").open("a") as file:
            file.write(json.dumps([step, indices]) + "\n")
        return whole(job, step, samples, indices)  # type: ignore[arg-type]

    loop.optimizer_step = noted  # type: ignore[assignment]
    try:
        run.train(config.load(config_file, [f"output_dir={folder}"]), resume=resume, say=lambda text: None)
    except LuthierError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def main() -> None:
    for line in sys.stdin:
        config_file, folder, how = line.split()
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)
            code = 1
            try:
                code = child(config_file, folder, how == "resume")
            finally:
                os._exit(code)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
