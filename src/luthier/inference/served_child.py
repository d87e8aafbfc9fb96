"""What llama.cpp's server makes of conversations: the ids that it would give the model.

Started as a file by `inference/served.py`, in a process of its own: native code ends the process it runs in when something is
wrong. Arguments: the GGUF file, the file with the conversations (a JSON list of lists of messages), and the file for the
answers (a JSON list of lists of ids, or of the server's error as a text).
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def main(model: str, questions: str, answers: str) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.use_jinja = True
    parameters.warmup = False
    parameters.n_gpu_layers = 0
    parameters.n_ctx = 256
    parameters.n_parallel = 1
    parameters.port = 0  # any free one
    server = xllamacpp.Server(parameters)

    def ask(path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(  # noqa: S310 - an address of this process
            server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.load(answer)

    out: list[list[int] | str] = []
    for messages in json.loads(Path(questions).read_text(encoding="utf-8")):
        try:
            prompt = ask("/apply-template", {"messages": messages})["prompt"]
            # as the server's own chat completions encode a rendered prompt
            out.append(ask("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"])
        except urllib.error.HTTPError as error:
            out.append(error.read().decode(errors="replace")[:300])
    Path(answers).write_text(json.dumps(out), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
