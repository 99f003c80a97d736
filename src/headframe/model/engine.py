"""Engines that an operator adds: where they are reached and how work is run there. A secret is named by its file, and never kept here."""

import msgspec

from headframe.model.fleet import SLURM
from headframe.model.ids import EngineId


class EngineSetup(msgspec.Struct, frozen=True, kw_only=True, tag="engine"):
    """A Slurm cluster. `url` is its slurmrestd (http, https, or `unix:` and a socket's path), `key_file` holds the key that its tokens are signed
    with, on the server's machine; `user` is the UNIX account that jobs run as, or with `accounts` (such as `hf-{project}`) each project's own.
    `shared` is a directory that the server and all its machines see under this path; `python` is found on all its machines.
    """

    id: EngineId
    kind: str = SLURM
    url: str
    key_file: str
    user: str
    shared: str
    partition: str = ""
    python: str = "/usr/bin/python3"
    accounts: str = ""
    created_ms: int = 0
    removed: bool = False

    def account(self, project: str) -> str:
        """The UNIX account that a project's work runs as."""
        return self.accounts.replace("{project}", project) if self.accounts else self.user
