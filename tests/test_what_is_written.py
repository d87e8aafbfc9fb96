"""Files and terminals are written in their places only, as assertions on the code."""

from __future__ import annotations

import ast
import re

from tests.test_architecture import FILES, SOURCE, TREES, calls, code_words, name_of

WRITERS = {
    "system/files.py": "all that has a name",
    "system/streams.py": "standard streams",
    "system/locks.py": "locks",
    "data/dataset/samples.py": "arrays that grow in the cache",
    "data/dataset/cache.py": "the same",
    "training/result.py": "a folder that is aside",
    "runs/checkpoint.py": "the same",
    "runs/beginning.py": "the same",
    "export/merged.py": "the same",
    "export/adapter.py": "the same",
    "models/adapters.py": "the same",
    "models/adapter_readme.py": "the same",
    "models/shards.py": "the same",
    "models/stored.py": "the same",
    "models/sources/gguf.py": "the same",
    "models/sources/pickled.py": "the same",
    "models/sources/pickled_child.py": "the same",
    "models/sources/package_index.py": "the same",
    "models/architectures/yuan/tokenizer.py": "where transformers saves a tokenizer",
    "data/chat/stop_tokens.py": "a folder that is aside",
    "inference/served.py": "a temporary folder",
    "inference/served_child.py": "the same",
    "inspecting/data/row_alone.py": "a pipe between two processes",
}
"""Files that write, and what. All others write by system/files.py, which follows no link and leaves nothing half."""


def writes(function: str, call: ast.Call) -> bool:
    """Whether a call writes a file."""
    name = function.rpartition(".")[2]
    if name in ("open", "fdopen") and not function.startswith("os.open"):
        words = [
            node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        return any(re.fullmatch(r"[rwaxbt+]*[wax+][rwaxbt+]*", word) for word in words)
    of_paths = {"write_text", "write_bytes", "touch", "symlink_to", "hardlink_to"}
    of_libraries = {"save_file", "save_pretrained", "tofile", "savez", "copyfile", "copytree", "copy2", "copyfileobj"}
    return name in of_paths | of_libraries or function in ("os.open", "np.save", "shutil.copy", "shutil.move")


def test_files_are_written_in_their_places_only() -> None:
    found = {name_of(path): call.lineno for path in FILES for function, call in calls(path) if writes(function, call)}
    assert not {name: line for name, line in found.items() if name not in WRITERS}
    assert not WRITERS.keys() - found.keys(), "write no more"


SPEAKERS = {
    "system/streams.py": "what is said plainly",
    "system/console.py": "colours and bars",
    "data/chat/sandbox.py": "a child, to its parent",
    "models/sources/pickled_child.py": "the same",
    "training/stop_signal.py": "a constant, in a handler of signals",
}
"""Files that write to standard streams. All others speak by the first two, which show what a terminal would obey."""


def speaks(function: str, call: ast.Call) -> bool:
    """Whether a call writes to a standard stream."""
    of_libraries = ("Console", "rich.print", "typer.echo", "click.echo", "typer.secho", "warnings.warn", "os.write")
    written = re.fullmatch(r"sys\.(__)?(stdout|stderr)(__)?(\.buffer)?\.write(lines)?", function)
    return function in ("print", *of_libraries) or function.endswith(".Console") or written is not None


def test_only_what_is_made_visible_reaches_a_terminal() -> None:
    found = {name_of(path): call.lineno for path in FILES for function, call in calls(path) if speaks(function, call)}
    assert not {name: line for name, line in found.items() if name not in SPEAKERS}
    bases = [
        ast.unparse(base)
        for node in ast.walk(TREES[SOURCE / "system/console.py"])
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    ]
    assert bases == ["Console"]


def test_files_are_hashed_and_a_full_disk_is_told_in_one_place() -> None:
    places = {"file_digest": "system/files.py", "ENOSPC": "system/faults.py", "EDQUOT": "system/faults.py"}
    wrong = [
        f"{name_of(path)}:{line} {word}"
        for path in FILES
        for word, line in code_words(path)
        if places.get(word, name_of(path)) != name_of(path)
    ]
    assert not wrong, "\n".join(wrong)
