"""The documents cite tests that exist, lead where they say, and have the figures of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mountfs import control
from mountfs.cli import launch, settings
from mountfs.config import MountConfig
from mountfs.fuse import polling, session
from mountfs.local import database, journal, staging
from mountfs.sync import committer, downloads, remote, uploads
from nodeserver import datadir
from nodeserver.chunks import pack, store
from nodeserver.chunks.s3 import catalogue, objects
from nodeserver.client import connection
from nodeserver.content import chunker, codec, manifest
from nodeserver.http import codec as bodies
from nodeserver.http import limits, server
from nodeserver.metadata import buckets, engines, migrations, tables
from nodeserver.protocol import errors, wire
from nodeserver.protocol.names import XATTR_LIST_MAX, XATTR_MAX, XATTR_VALUE_MAX

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
DECISIONS = sorted(ROOT.glob("docs/decisions/*.md"))
CITED = re.compile(r"\btests/[\w/]+\.py::\w+")


def text_of(name: str) -> str:
    """A document, white space as one blank."""
    return re.sub(r"\s+", " ", (ROOT / "docs" / name).read_text())


def size(number: int) -> str:
    """Bytes as the documents write them."""
    for shift, unit in ((60, "EiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << shift:
            assert not number % (1 << shift)
            return f"{number >> shift} {unit}"
    return str(number)


def functions_of(path: Path) -> set[str]:
    """Names of the functions of a test file."""
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_test_that_is_cited_exists() -> None:
    cited = sorted({found for document in DOCUMENTS for found in CITED.findall(document.read_text())})
    assert len(cited) > 100
    gone = [one for one in cited if not _exists(one)]
    assert not gone, gone


def _exists(cited: str) -> bool:
    file, _, name = cited.partition("::")
    return (ROOT / file).exists() and name in functions_of(ROOT / file)


def test_every_promise_cites_a_test() -> None:
    """Each item before the limits is followed by the tests that hold it."""
    promises = (
        (ROOT / "docs/semantics.md").read_text().partition("## What a call waits for")[2].partition("## Limits")[0]
    )
    items = re.findall(r"^- .*\n(?:  .*\n)*", promises, flags=re.MULTILINE)
    assert len(items) > 40
    bare = [item for item in items if not CITED.search(item)]
    assert not bare, bare


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = document.parent / file if file else document
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def anchors(document: Path) -> set[str]:
    """What a heading can be linked by."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_decisions_are_numbered_and_short() -> None:
    assert [path.name[:4] for path in DECISIONS] == [f"{number:04}" for number in range(1, len(DECISIONS) + 1)]
    for path in DECISIONS:
        text = path.read_text()
        assert text.startswith(f"# {int(path.name[:4])}. "), path
        assert len(text.splitlines()) <= 40, path
        places = [text.find(f"**{part}.**") for part in ("Context", "Decision", "Consequence")]
        assert -1 < places[0] < places[1] < places[2], path


def test_modules_and_packages_that_the_map_names_exist() -> None:
    names = set(re.findall(r"`((?:mountfs|nodeserver)(?:\.\w+)+)`", text_of("architecture.md")))
    assert names
    for name in names:
        path = ROOT / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), name
    packages = {
        f"{top}.{path.parent.name}" for top in ("mountfs", "nodeserver") for path in (ROOT / top).glob("*/__init__.py")
    }
    assert packages <= names


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("semantics.md", f"`metadata-deadline`, {MountConfig.metadata_deadline:g} s"),
        ("semantics.md", f"`data-deadline`, {MountConfig.data_deadline:g} s"),
        ("semantics.md", f"up to {size(manifest.MAX_SIZE)}"),
        ("architecture.md", f"settle time ({MountConfig.settle:g} s)"),
        ("architecture.md", f"once {size(uploads.EARLY_BYTES)} of it wait"),
        ("architecture.md", f"up to {size(downloads.AHEAD_BYTES)} ahead"),
        ("architecture.md", f"more than {remote.PAGE:,} names"),
        ("concurrency.md", f"up to {session.MAX_TASKS} request workers"),
        ("concurrency.md", f"after every {polling.STREAK} requests"),
        ("concurrency.md", f"for {polling.SPIN_NS // 1000} µs"),
        ("concurrency.md", f"only while {size(connection.BULK)} or more"),
        ("concurrency.md", f"at most {committer.BATCH_ROWS:,} rows and about {size(committer.BATCH_BYTES)}"),
        ("concurrency.md", f"{server.GRACE:g} s for requests in flight"),
        ("concurrency.md", f"| `metadata-reader` | {engines.THREADS} |"),
        ("concurrency.md", f"| `chunk-disk` | {store.DISK_THREADS} |"),
        ("concurrency.md", f"at most {objects.PARALLEL} at a time"),
        ("concurrency.md", f"Each has {objects.DEADLINE:g} s, retries included"),
        ("formats.md", f"the first {size(catalogue.GUESS)}"),
        ("formats.md", f"is the format, now {database.FORMAT}."),
        ("formats.md", f"`{control.NAME}` | 0600"),
        ("formats.md", f"`{settings.TOKEN}` | 0600"),
        ("formats.md", f"`{launch.LOG}`, `.1` … `.{launch.LOG_FILES - 1}` | | the log of a daemon in the background"),
        ("formats.md", f"minimum {size(chunker.MIN_CHUNK)}, average {size(chunker.AVG_CHUNK)}"),
        ("formats.md", f"Content of up to {size(chunker.MIN_CHUNK)} is one chunk"),
        ("formats.md", f"| 4 | magic | `{codec.MAGIC.decode()}` | | 1 | version | {codec.VERSION} |"),
        ("formats.md", f"More than {manifest.MAX_INLINE:,} slices"),
        ("formats.md", f"stored forms of less than {size(store.SMALL)}"),
        ("formats.md", f"more are stored in chunks: {manifest.MAX_SLICES:,} at most"),
        ("formats.md", f"has reached {size(pack.PACK_LIMIT)}"),
        ("formats.md", f'{{"format": {datadir.FORMAT}, "id": "…"}}'),
        ("formats.md", f"a body {size(wire.MAX_BODY)}, a chunk's stored form {size(codec.MAX_CHUNK)} and its header"),
        ("formats.md", f"a commit {wire.MAX_COMMIT_OPS:,} operations and {size(wire.MAX_COMMIT_CHUNKS)} of chunks"),
        ("formats.md", f"a batch {wire.MAX_BATCH_CHUNKS:,} chunks and {size(wire.MAX_BATCH_BYTES)}"),
        ("formats.md", f"of a file {size(XATTR_MAX)} together, {size(XATTR_VALUE_MAX)} a value"),
        ("formats.md", f"and {size(XATTR_LIST_MAX)} of names. A body must arrive within {bodies.BODY_DEADLINE:g} s"),
        ("formats.md", f"within {bodies.PAUSE:g} s and a second for each {size(bodies.SLOWEST)}."),
        ("formats.md", f"{limits.DESCRIPTORS:,} at most; {limits.FILES} of them for files"),
        ("formats.md", f"who may write | {size(limits.WRITERS)}, {size(limits.WRITERS // 2)} an address"),
        ("formats.md", f"only read | {size(limits.READERS)}, {size(limits.READERS // 2)} an address"),
        ("formats.md", f"| time without a whole request | {server.IDLE:g} s |"),
        ("formats.md", f"| time that an answer stays unread | {server.UNREAD:g} s |"),
        ("formats.md", f"`type` is `{errors.PREFIX}`"),
        ("decisions/0001-journal-first.md", f"less than {size(staging.SMALL)} staged"),
        ("decisions/0003-kernel-caches.md", f"raised to {session.READ_AHEAD_KB >> 10} MiB"),
        ("decisions/0004-polling.md", f"for {polling.SPIN_NS // 1000} µs after a request"),
        ("decisions/0004-polling.md", f"After {polling.STREAK} requests in a row"),
        ("decisions/0009-late-binding.md", f"less when {committer.EAGER_ROWS} rows wait"),
        ("decisions/0012-chunk-sizes.md", f"an average of {size(chunker.AVG_CHUNK)}"),
    ],
)
def test_figures_are_those_of_the_code(document: str, words: str) -> None:
    assert words in text_of(document)


def test_formats_name_every_table_and_journal_row() -> None:
    text = text_of("formats.md")
    for table in re.findall(r"CREATE TABLE (\w+)", database.SCHEMA):
        assert f"| `{table}` |" in text, table
    numbers = dict[str, int]()
    for names, values in re.findall(r"\| ([A-Z, ]+) \| ([\d, ]+) \|", text):
        numbers |= dict(zip(names.split(", "), map(int, values.split(", ")), strict=True))
    assert numbers == {op.name: op.value for op in journal.Op}
    masks = re.findall(r"mask: ([\w, ]+) \|", text)[0].split(", ")
    assert masks == [f"{field.value} {field.name.lower()}" for field in journal.Field if field.name]
    assert f"| `schema_version` | | the format, now {migrations.FIRST + len(migrations.STEPS)} |" in text
    for name in tables.metadata.tables:
        assert f"| `{name}` |" in text, name
    assert buckets.PURGE == 1000, "as formats.md and concurrency.md say"
