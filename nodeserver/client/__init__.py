"""How to talk to node servers, under trio and asyncio alike.

::

    async with connect(url, token) as client:
        bucket = await client.bucket("photos")
        await client.put_chunk("photos", chunk_id, stored)

Every call has a deadline, is retried inside it with exponential backoff and jitter, and fails with a
:class:`ClientError` and nothing else; a circuit breaker leaves a failing server alone for a while.
"""

from nodeserver.client.api import Client, connect
from nodeserver.client.breaker import Circuit, State
from nodeserver.client.errors import (
    BadAnswer,
    CircuitOpen,
    ClientError,
    DeadlineExceeded,
    InvalidUrl,
    QuorumLost,
    Refused,
    Unreachable,
    refused,
)

__all__ = [
    "BadAnswer",
    "Circuit",
    "CircuitOpen",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "InvalidUrl",
    "QuorumLost",
    "Refused",
    "State",
    "Unreachable",
    "connect",
    "refused",
]
