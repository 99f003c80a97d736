"""A directory as a tar archive: `.gitignore` respected, the same content always the same bytes."""

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pathspec

ALWAYS_LEFT_OUT = (".git/", ".venv/", "__pycache__/", ".hg/", "node_modules/", "*.pyc")
SIZE_MAX = 256 * 1024 * 1024


class WorkdirTooLarge(Exception):
    """More than the server would take."""


def pack(directory: Path) -> bytes:
    """The archive, gzipped; WorkdirTooLarge, or OSError for what can't be read."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(_files(directory)):
            info = archive.gettarinfo(path, arcname=str(path.relative_to(directory)))
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = 0
            if info.isreg():
                with path.open("rb") as file:
                    archive.addfile(info, file)
            elif info.issym():
                archive.addfile(info)
            if plain.tell() > SIZE_MAX:
                raise WorkdirTooLarge(f"{directory} has more than {SIZE_MAX // 2**20} MiB: leave files out with .gitignore")
    return gzip.compress(plain.getvalue(), compresslevel=1, mtime=0)


def _files(directory: Path) -> Iterator[Path]:
    ignore = directory / ".gitignore"
    rules = ignore.read_text(encoding="utf-8", errors="replace").splitlines() if ignore.exists() else []
    left_out = pathspec.GitIgnoreSpec.from_lines([*ALWAYS_LEFT_OUT, *rules])
    return _walk(directory, directory, left_out)


def _walk(directory: Path, root: Path, left_out: pathspec.GitIgnoreSpec) -> Iterator[Path]:
    for path in directory.iterdir():
        inside = path.is_dir() and not path.is_symlink()
        if left_out.match_file(str(path.relative_to(root)) + ("/" if inside else "")):
            continue
        if inside:
            yield from _walk(path, root, left_out)
        else:
            yield path
