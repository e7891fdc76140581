"""What the verbs of history share."""
