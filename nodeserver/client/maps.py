"""The cluster map as servers tell it."""

from __future__ import annotations

from nodeserver.client.errors import BadAnswer
from nodeserver.client.node import base
from nodeserver.placement.map import BadMap, ClusterMap, State, unpack
from nodeserver.protocol.cluster import ClusterAnswer


def told(answer: ClusterAnswer) -> ClusterMap | None:
    """The map of an answer; None when it has none, because who asked has the newest.

    Raises InvalidUrl, and BadAnswer, also when it is in a format that this release does not know.
    """
    try:
        found = unpack(answer.map) if answer.map else None
    except BadMap as error:
        raise BadAnswer(str(error)) from error
    for node in found.nodes if found else ():
        if node.state is not State.REMOVED:
            base(node.url)
    return found
