"""What a token is worth at this server: that depends on which server it is, and on the cluster map."""

from __future__ import annotations

import dataclasses

from nodeserver.access.tokens import Forbidden, Identity, InvalidToken
from nodeserver.http.services import NodeServices
from nodeserver.placement.map import State
from nodeserver.protocol.cluster import METADATA


def judged(who: Identity, here: NodeServices) -> Identity:
    """Who asks, with the right that it has here.

    Raises ``InvalidToken`` for a token that is for another node, ``Forbidden`` for one of a node that was removed.
    """
    if who.only and who.only != here.node.hex():
        raise InvalidToken("the token is for another node")
    if who.member is None:
        return who
    node = next((node for node in here.membership.map.nodes if node.id == who.member), None)
    if node is not None and node.state is State.REMOVED:
        raise Forbidden(f"{who.subject} was removed from the cluster")
    if who.right not in ("node", "admin"):
        return who
    if who.member == here.node and not here.keys.signs:
        return dataclasses.replace(who, right="admin")  # it is the token in the data directory of this node
    if who.right == "admin":  # as servers of an earlier release gave all nodes, and sent to wherever a node said it was
        has_metadata = node is not None and METADATA in node.roles
        return dataclasses.replace(who, right="server" if has_metadata else "node")
    return who
