"""Chunks in a cluster: where their pieces go, how many acknowledge a write, and how one is read while nodes fail."""

from nodeserver.client.cluster.cluster import Cluster, Located, Place
from nodeserver.placement.map import ClusterMap, Node, State
from nodeserver.placement.map import unpack as unpack_map

__all__ = ["Cluster", "ClusterMap", "Located", "Node", "Place", "State", "unpack_map"]
