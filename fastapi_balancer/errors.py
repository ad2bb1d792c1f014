"""Every exception that the package raises on purpose.

BalancerError
├── ConfigError     the YAML file or an argument is wrong; raised before serving
├── StorageError    the store is unreachable, or answered something unexpected
├── ProbeError      a probe could not reach a verdict; the service starts all the same
├── Rejected        a request was refused; only admission turns it into an answer
└── ClientLeft      the client of a queued request has gone; nobody is left to answer
"""

from __future__ import annotations

from typing import Literal

Reason = Literal[
    "queue_timeout", "queue_full", "unhealthy", "draining", "storage_unavailable", "body_timeout"
]


class BalancerError(Exception):
    """Base class, so that a caller can catch everything of ours."""


class ConfigError(BalancerError):
    """The configuration is wrong. The message says what, where, and what to write instead."""


class StorageError(BalancerError):
    """The store cannot be reached, or its answer is not understood."""


class ProbeError(BalancerError):
    """A probe ended without a verdict. The message says why, in words for a log."""


class Rejected(BalancerError):
    """A request was refused.

    `reason` is one of the closed set that clients see; `retry_after` is in seconds.
    """

    def __init__(self, reason: Reason, retry_after: float) -> None:
        super().__init__(reason)
        self.reason: Reason = reason
        self.retry_after = retry_after


class ClientLeft(BalancerError):
    """The client of a queued request has gone: it is not run, and nobody is left to answer."""
