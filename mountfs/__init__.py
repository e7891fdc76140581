"""mountfs: buckets of a node server as a folder."""
