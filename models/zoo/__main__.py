"""``python -m models.zoo``: build the zoo's artifacts anew, or check that they are what the code gives."""

import argparse
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fl_io.disk import write_file
from fl_protocol.artifact import MANIFEST_NAME
from fl_protocol.errors import LichenError
from models.runtime.artifact import TrainingArtifact
from models.zoo.catalogue import CATALOGUE, ZOO, ZooModel, find

__all__ = ["differences", "main", "readme"]


def main(words: list[str] | None = None) -> int:
    """Build or check; 0, or 1 where a file differs or a build fails."""
    parser = argparse.ArgumentParser(prog="python -m models.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to build; all, where none is named")
    parser.add_argument("--out", type=Path, default=ZOO, help="folder for <task>/<variant>/; the zoo's own")
    parser.add_argument("--check", action="store_true", help="write nothing; tell which files differ")
    options = parser.parse_args(words)
    try:
        chosen = [find(name) for name in options.names] or CATALOGUE
        stale = [file for model in chosen for file in _made(model, options.out, check=options.check)]
    except LichenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stderr.write("".join(f"differs: {file}\n" for file in stale))
    return 1 if stale else 0


def differences(artifact: TrainingArtifact, folder: Path) -> list[Path]:
    """The files of ``folder`` that are not the artifact's, byte for byte; missing ones and strangers too."""
    wanted = {name: artifact.read(name) for name in artifact.manifest.files}
    wanted[MANIFEST_NAME] = artifact.manifest_json
    found = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}
    return sorted(
        folder / name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    )


def readme(text: str, name: str, artifact: TrainingArtifact) -> str:
    """A task's README.md with the first row of its tables that begins with the model ``name`` renewed:
    parameters, and bytes of the ONNX graphs, of the TFLite graphs, and of all files."""
    columns = (artifact.layout.size, _bytes(artifact, ".onnx"), _bytes(artifact, ".tflite"), _bytes(artifact))
    row = f"| `{name}` | {' | '.join(f'{number:,}' for number in columns)} |"
    return re.sub(rf"^\| `{re.escape(name)}` \|.*$", row, text, count=1, flags=re.MULTILINE)


def _made(model: ZooModel, out: Path, *, check: bool) -> Iterator[Path]:
    """Build one model and say so; the files that differ, where they are only checked."""
    from models.zoo.recipes import build

    started = time.monotonic()
    artifact = build(model.name, None if check else out / model.place)
    sys.stdout.write(
        f"{model.name}: {artifact.layout.size:,} parameters, {_bytes(artifact):,} bytes, "
        f"{time.monotonic() - started:.1f} s\n"
    )
    page = out / model.task / "README.md"
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    new = readme(old, model.name, artifact)
    if check:
        yield from differences(artifact, out / model.place)
        if new != old:
            yield page
    elif new != old:
        write_file(page, new.encode(), purpose="zoo.page")


def _bytes(artifact: TrainingArtifact, suffix: str = "") -> int:
    files = {name: ref.size for name, ref in artifact.manifest.files.items()}
    files[MANIFEST_NAME] = len(artifact.manifest_json)
    return sum(size for name, size in files.items() if name.endswith(suffix))


if __name__ == "__main__":
    sys.exit(main())
