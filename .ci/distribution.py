"""Make the sdist and the wheel, and hold them to what users and the index expect of them.

Run in a checkout: ``python .ci/distribution.py --output dist``. Needs build, twine and check-wheel-contents, which the
dependency group `distribution` names. An AssertionError or a command that fails says what is wrong.
"""

import argparse
import email.policy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]

#: What cannot do without the rest of a checkout, so belongs in the sdist alone.
NOT_IN_THE_WHEEL: Final = ("tests", "benchmarks", "examples", "docs", ".ci")


def run(module: str, *arguments: str | Path) -> None:
    """Run a module of this Python, and raise if it fails."""
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def one(directory: Path, pattern: str) -> Path:
    """Return the only file there."""
    (path,) = directory.glob(pattern)
    return path


def files(wheel: Path) -> dict[str, bytes]:
    """Return the content of each file by its name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def check_wheel(found: dict[str, bytes]) -> None:
    """The package whole, what tells that it is typed, the licence, and nothing that only developers use."""
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "maildir_async").rglob("*.py")}
    assert package <= found.keys(), f"not in the wheel: {sorted(package - found.keys())}"
    assert "maildir_async/py.typed" in found, "without py.typed its types are not used"
    strays = {name for name in found if not name.startswith(("maildir_async/", "maildir_async-"))}
    assert not strays, f"installed beside the package: {sorted(strays)}"
    (metadata,) = (content for name, content in found.items() if name.endswith(".dist-info/METADATA"))
    described = BytesParser(policy=email.policy.compat32).parsebytes(metadata)
    assert described.get_all("License-File") == ["LICENSE"]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in found)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(described.get_all("Provides-Extra", [])) == set(extras), "not all extras, or a dependency group"
    assert described["Description-Content-Type"] == "text/markdown"


def check_sdist(sdist: Path) -> None:
    """All that a packager of a distribution needs to make the wheel and to run the tests."""
    with tarfile.open(sdist) as archive:
        top = {name.split("/")[1] for name in archive.getnames() if "/" in name}
        mine = [name for name in archive.getnames() if "__pycache__" in name or "/.venv/" in name]
    expected = {
        *NOT_IN_THE_WHEEL,
        "maildir_async",
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "PKG-INFO",
    }
    assert expected <= top, f"not in the sdist: {sorted(expected - top)}"
    assert not mine, f"left by a run: {mine}"


def main() -> None:
    """Build twice: from the checkout, and from the sdist as a packager would. The wheels are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where the two go (default: dist/)")
    output: Path = parser.parse_args().output
    with tempfile.TemporaryDirectory() as directory:
        made, direct = Path(directory, "made"), Path(directory, "direct")
        run("build", "--outdir", made, ROOT)  # the wheel out of the sdist
        run("build", "--wheel", "--outdir", direct, ROOT)
        wheel, sdist = one(made, "*.whl"), one(made, "*.tar.gz")
        run("twine", "check", "--strict", wheel, sdist)
        run("check_wheel_contents", wheel)
        check_wheel(files(wheel))
        assert files(wheel) == files(one(direct, "*.whl")), "the sdist makes another wheel than the checkout"
        check_sdist(sdist)
        output.mkdir(parents=True, exist_ok=True)
        for path in (wheel, sdist):
            shutil.copy(path, output)


if __name__ == "__main__":
    main()
