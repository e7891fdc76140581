"""The ``nodeserver`` command, a module a verb."""
