"""The cluster map as servers tell it."""

from __future__ import annotations

from nodeserver.client.errors import BadAnswer
from nodeserver.placement.map import BadMap, ClusterMap, unpack
from nodeserver.protocol.cluster import ClusterAnswer


def told(answer: ClusterAnswer) -> ClusterMap | None:
    """The map of an answer; None when it has none, because who asked has the newest.

    Raises BadAnswer, also when it is in a format that this release does not know.
    """
    try:
        return unpack(answer.map) if answer.map else None
    except BadMap as error:
        raise BadAnswer(str(error)) from error
