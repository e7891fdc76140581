"""Chunks in a cluster: where their pieces go, how many acknowledge a write, and how one is read while nodes fail."""

from nodeserver.client.cluster.cluster import Cluster, Located, Place

__all__ = ["Cluster", "Located", "Place"]
