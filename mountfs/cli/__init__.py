"""The ``mountfs`` command: one module per verb."""
