"""The HTTP API ``/v1``: one module for each kind of resource, one envelope around all of them.

``app.build`` puts them together, ``server.serve`` runs them.
"""
