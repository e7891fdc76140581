"""Which nodes keep a chunk: the cluster map, redundancy schemes, placement, what a change of the map moves.

Pure functions of their arguments: every client and server that has the same map finds the same nodes.
"""
