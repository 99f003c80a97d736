"""Headframe: the operating system of a GPU cloud."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headframe.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    """`from headframe import Client`, without making every import of a part pay for the HTTP library."""
    if name != "Client":
        raise AttributeError(name)
    from headframe.client import Client

    return Client
