"""Files of a data directory that others than its server read."""

ADMIN_TOKEN = "admin.token"  # noqa: S105 - a file
ADDRESS = "address"
"""The file with the URL that the server was reached at when it started last."""
