"""``python -m nodeserver``."""

from nodeserver.cli import main

main()
