"""What goes wrong in the ``nodeserver`` command, as one line and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
from sqlalchemy.exc import SQLAlchemyError

from nodeserver.chunks.s3.credentials import NoCredentials
from nodeserver.datadir import Damaged, InUse, Open
from nodeserver.metadata.engines import UnusableUrl
from nodeserver.metadata.errors import Unavailable
from nodeserver.metadata.migrations import NewerFormat

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_IN_USE = 3
EXIT_NEWER = 4
EXIT_ADDRESS = 5


class Failure(click.ClickException):
    """One line for the user, and an exit code."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


@contextmanager
def failures() -> Iterator[None]:
    """What can go wrong at the start, as one line and an exit code."""
    try:
        yield
    except InUse as error:
        raise Failure(str(error), EXIT_IN_USE) from error
    except NewerFormat as error:
        raise Failure(str(error), EXIT_NEWER) from error
    except UnusableUrl as error:
        raise Failure(f"--metadata: {error}", EXIT_USAGE) from error
    except NoCredentials as error:
        raise Failure(f"--chunks: {error}", EXIT_USAGE) from error
    except Unavailable as error:
        raise Failure(str(error)) from error
    except (Damaged, Open, OSError) as error:
        raise Failure(str(error)) from error
    except SQLAlchemyError as error:
        raise Failure(f"the metadata database: {getattr(error, 'orig', None) or error}") from error
