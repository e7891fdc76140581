"""What ``.versions`` shows: the past of a bucket as directories and files that nobody can change."""
