"""``python -m nodeserver``."""

from nodeserver.cli.main import main

main()
