"""The example notebooks: run, in a kernel or without one, and kept with their outputs.

``python tests/notebooks.py`` runs each in a kernel, in a directory of its own, and puts what it shows into the file in
the repository, as if the machine were called "example" and the directory a user's.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import maildir_async

EXAMPLES: Final = Path(__file__).parents[1] / "examples"
ENVIRONMENT: Final = os.environ | {"PYTHONPATH": str(Path(maildir_async.__file__).parents[1])}

#: Where the notebooks are said to have been run.
HOME: Final = "/home/you"

#: The outputs of each cell with code.
Outputs = list[list[dict[str, Any]]]

IN_KERNEL: Final = """
import json, sys, nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

book = nbformat.read(sys.argv[1], as_version=4)
# No installed kernel: the one that jupyter_client makes up for the interpreter it runs in.
manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
assert manager.kernel_spec.argv[0] == sys.executable, manager.kernel_spec.argv
where = {"metadata": {"path": sys.argv[2]}}
NotebookClient(book, km=manager, timeout=60, resources=where, coalesce_streams=True).execute()
print(json.dumps([cell.outputs for cell in book.cells if cell.cell_type == "code"]))
"""

# What a kernel does with a cell: run it where `await` may stand anywhere, keep what it prints, show its last value.
IN_CELLS: Final = """
import ast, asyncio, contextlib, io, json, os, sys

async def run(code, namespace):
    value = eval(code, namespace)
    return await value if code.co_flags & 0x80 else value  # a coroutine, if `await` stands in it

async def main():
    cells = [cell for cell in json.load(open(sys.argv[1]))["cells"] if cell["cell_type"] == "code"]
    os.chdir(sys.argv[2])
    namespace, outputs = {"__name__": "__main__"}, []
    for cell in cells:
        module, shown, printed = ast.parse("".join(cell["source"])), None, io.StringIO()
        last = ast.Expression(module.body.pop().value) if isinstance(module.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(printed):
            for part, mode in ((module, "exec"), (last, "eval")):
                if part is not None:
                    code = compile(part, "a cell", mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                    shown = await run(code, namespace)
        outputs.append([])
        if printed.getvalue():
            outputs[-1].append({"output_type": "stream", "name": "stdout", "text": printed.getvalue()})
        if hasattr(shown, "_repr_html_"):
            outputs[-1].append({"output_type": "execute_result", "data": {"text/html": shown._repr_html_()}})
    print(json.dumps(outputs))

asyncio.run(main())
"""


def run_notebook(how: str, path: Path, directory: Path) -> Outputs:
    """Run every cell in *directory*, and return their outputs. *how* is one of the two programs above."""
    environment = ENVIRONMENT | {"JUPYTER_PLATFORM_DIRS": "1", "IPYTHONDIR": str(directory / "ipython")}
    done = subprocess.run(
        [sys.executable, "-c", how, path, directory], env=environment, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    outputs: Outputs = json.loads(done.stdout)
    return outputs


def kept_outputs(path: Path) -> Outputs:
    """Return the outputs that are in a notebook's file."""
    cells = json.loads(path.read_text())["cells"]
    return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]


def texts(outputs: Outputs, kind: str, mime: str = "text/plain") -> list[str]:
    """Return what the outputs of one kind say, in order: of a value, what it is in one format, if it has that."""
    found = [output for cell in outputs for output in cell if output["output_type"] == kind]
    said = [output["text"] if kind == "stream" else output["data"].get(mime, "") for output in found]
    return ["".join(each) for each in said]


def bare(text: str, home: str) -> str:
    """Return *text* without what is another one in each run: where that was, names, numbers and times."""
    text = re.sub(r"\d+\.M\d+P\d+Q\d+R[0-9a-f]{16}\.[^,\s<&]+", "NAME", text.replace(home, HOME))
    return re.sub(r"\d[\d,.]*", "0", re.sub(r"\d[\d,.]* m?s\b", "TIME", text))


def shape(outputs: Outputs, home: str) -> list[list[tuple[str, dict[str, str]]]]:
    """Return the outputs as they are in each run: of which kind, in which formats, and what they say without that."""

    def said(output: dict[str, Any]) -> dict[str, str]:
        by_mime: dict[str, Any] = {output["name"]: output["text"]} if "text" in output else output["data"]
        return {mime: bare("".join(text), home) for mime, text in by_mime.items()}

    return [[(output["output_type"], said(output)) for output in cell] for cell in outputs]


def main() -> None:
    """Run each notebook, and put its outputs into its file."""
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as directory:
            said = json.dumps(run_notebook(IN_KERNEL, path, Path(directory))).replace(directory, HOME)
        outputs = json.loads(re.sub(r"(\d+\.M\d+P\d+Q\d+R[0-9a-f]{16}\.)[^,\s<&]+", r"\1example", said))
        book = json.loads(path.read_text())
        cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
        for number, (cell, shown) in enumerate(zip(cells, outputs, strict=True), 1):
            cell["execution_count"] = number
            cell["outputs"] = [_in_lines(output) for output in shown]
        path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")


def _in_lines(output: dict[str, Any]) -> dict[str, Any]:
    """Return an output as nbformat writes it, text in lines, so that a change can be read."""
    if "text" in output:
        output["text"] = output["text"].splitlines(keepends=True)
    for mime, text in output.get("data", {}).items():
        output["data"][mime] = text.splitlines(keepends=True)
    return output


if __name__ == "__main__":
    main()
