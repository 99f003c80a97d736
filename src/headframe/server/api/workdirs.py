"""Workdir upload: a tar archive, checked entry by entry and kept under the hash of its content.

Refused: paths that leave the directory, links that point out of it, devices, and archives that unpack to more than the limit.
"""

import asyncio
import hashlib
import os
import secrets
import tarfile
from pathlib import Path
from typing import Any

from litestar import Request, Router, put

from headframe.model.api import WorkdirMade
from headframe.model.errors import BadRequest, DiskFull, HeadframeError, TooLarge
from headframe.model.people import Scope
from headframe.server.api.problems import answers
from headframe.server.auth import Principal
from headframe.server.context import Context

UPLOAD_BYTES_MAX = 256 * 1024 * 1024
UNPACKED_BYTES_MAX = 1024 * 1024 * 1024
FILES_MAX = 20_000
NO_SPACE = 28


@put("/v1/workdirs", opt={"scope": Scope.MEMBER}, status_code=201, request_max_body_size=None, responses=answers(413, 422))
async def upload(context: Context, request: Request[Principal, Any, Any]) -> WorkdirMade:
    """Upload a tar archive (plain or gzip) as the request's body; the answer's `digest` names it in a submission."""
    part = context.workdirs / f"upload-{secrets.token_hex(8)}"
    try:
        size, digest = await _receive(request, part)
        files = await asyncio.to_thread(_check, part)
        await asyncio.to_thread(_keep, part, context.workdirs / f"{digest}.tar")
    except OSError as error:
        full = error.errno == NO_SPACE
        raise DiskFull("there is no space for this workdir") if full else BadRequest(f"not received: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return WorkdirMade(digest=digest, files=files, size_bytes=size)


async def _receive(request: Request[Principal, Any, Any], part: Path) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with part.open("xb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > UPLOAD_BYTES_MAX:
                raise TooLarge(f"a workdir is at most {UPLOAD_BYTES_MAX // 2**20} MiB")
            digest.update(chunk)
            file.write(chunk)
    return size, digest.hexdigest()


def _check(part: Path) -> int:
    """The number of files; refuses what should not be unpacked, without unpacking it."""
    files = total = 0
    try:
        with tarfile.open(part) as archive:
            for member in archive:
                tarfile.data_filter(member, "/nowhere")
                files, total = files + 1, total + member.size
                if files > FILES_MAX or total > UNPACKED_BYTES_MAX:
                    raise TooLarge(f"a workdir unpacks to at most {FILES_MAX} files and {UNPACKED_BYTES_MAX // 2**30} GiB")
    except HeadframeError:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise BadRequest(f"this archive is refused: {error}", "send a tar of plain files below one directory") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise BadRequest(f"this archive can't be read: {error}") from error
    return files


def _keep(part: Path, target: Path) -> None:
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.rename(target)


ROUTER = Router("/", route_handlers=[upload])
