"""The tables of the metadata database.

Only portable SQL types are used. Bytes compare byte by byte, so names sort as POSIX names; times are nanoseconds
since the epoch, sizes are bytes. Every table of a bucket's content begins its key with ``bucket``, the bucket's
number: a client mints its own file and version ids, and must not be able to reach another bucket by them.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Dialect, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text, text

LIVE = (1 << 63) - 1
"""The ``until_seq`` of an entry that has not ended."""


class Bytes(LargeBinary):
    """Bytes, handed to the driver as they are; SQLAlchemy would wrap each value, at a quarter of a batch's time."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> None:
        return None

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        return None


metadata = MetaData()

schema_version = Table(
    "schema_version",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    comment="One row: the format of this database, see migrations.",
)

bucket = Table(
    "bucket",
    metadata,
    Column("bucket", Integer, primary_key=True),  # never used twice, so that nothing left over can be inherited
    Column("id", Bytes(16), nullable=False, unique=True),  # minted by who created it: makes a repeat harmless
    Column("name", Text, unique=True),  # null once the bucket is deleted and waits to be purged
    Column("root", Bytes(16), nullable=False),
    Column("chunk_key", Bytes(32), nullable=False),  # keys the ids of its chunks; never changes
    Column("created_ns", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),  # of its last commit; 0 before the first
    Column("time_ns", BigInteger, nullable=False),  # of its last commit; the log's times never go back
    Column("used_bytes", BigInteger, nullable=False),  # sum of the sizes of regular files with nlink > 0
    Column("used_files", BigInteger, nullable=False),  # files and directories with nlink > 0, the root left out
    Column("quota_bytes", BigInteger),  # null: no limit
    Column("redundancy", Text, nullable=False, server_default=""),  # as protocol.wire.Bucket has it
    sqlite_autoincrement=True,
)

file = Table(
    "file",
    metadata,
    Column("bucket", Integer, ForeignKey("bucket.bucket"), primary_key=True),
    Column("id", Bytes(16), primary_key=True),
    Column("mode", BigInteger, nullable=False),  # the whole st_mode; the type never changes
    Column("uid", BigInteger, nullable=False),
    Column("gid", BigInteger, nullable=False),
    Column("rdev", BigInteger, nullable=False),
    # Live entries that name it; for a directory 2 + live subdirectories, as stat(2) shows it. 0: the file is gone,
    # its row stays for the history.
    Column("nlink", BigInteger, nullable=False),
    Column("entries", BigInteger, nullable=False),  # live entries in a directory
    Column("size", BigInteger, nullable=False),
    Column("atime_ns", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("ctime_ns", BigInteger, nullable=False),
    Column("target", Bytes, nullable=False),  # of a symbolic link
    Column("xattrs", Bytes, nullable=False),  # MessagePack map; empty for none
    Column("version", Bytes(16), nullable=False),  # the head, a row of version; empty: no content
    Column("since_seq", BigInteger, nullable=False),  # the commit that made the row as it is
    # Lineage: whose history it continues, and since which commit; empty for none. See metadata.lineage. Of a directory
    # without a name: the one it met when it was to be made, and became.
    Column("follows", Bytes(16), nullable=False),
    Column("follows_seq", BigInteger, nullable=False),
    Index(
        "file_follows",
        "bucket",
        "follows",
        sqlite_where=text("follows_seq > 0"),
        postgresql_where=text("follows_seq > 0"),
    ),
    sqlite_with_rowid=False,
)

# What rows of file were: the file at commit S is the row with since_seq <= S < until_seq, of file or from here. Rows
# that retention took out leave gaps; the newest row that began by S does for them.
past = Table(
    "past",
    metadata,
    Column("bucket", Integer, ForeignKey("bucket.bucket"), primary_key=True),
    Column("file", Bytes(16), primary_key=True),
    Column("since_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("until_seq", BigInteger, nullable=False),  # the commit that changed it
    Column("mode", BigInteger, nullable=False),
    Column("uid", BigInteger, nullable=False),
    Column("gid", BigInteger, nullable=False),
    Column("nlink", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("atime_ns", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("ctime_ns", BigInteger, nullable=False),
    Column("xattrs", Bytes, nullable=False),
    Column("version", Bytes(16), nullable=False),
    sqlite_with_rowid=False,
)

# The namespace is temporal: a row is never overwritten, only ended. The tree at commit S is the rows with
# since_seq <= S < until_seq. One name is at most once live, and ends at most once in a commit; what began and ended
# within one commit leaves no row. Live entries of a directory are neighbours, in the order of their names.
entry = Table(
    "entry",
    metadata,
    Column("bucket", Integer, ForeignKey("bucket.bucket"), primary_key=True),
    Column("parent", Bytes(16), primary_key=True),
    Column("until_seq", BigInteger, primary_key=True),  # LIVE, or the commit that ended it
    Column("name", Bytes(255), primary_key=True),
    Column("file", Bytes(16), nullable=False),
    Column("since_seq", BigInteger, nullable=False),
    Index("entry_of_file", "bucket", "file", "until_seq"),
    # Who was at a place before; live entries are found by the key, and need not be entered here.
    Index(
        "entry_ended",
        "bucket",
        "parent",
        "name",
        "until_seq",
        sqlite_where=text(f"until_seq < {LIVE}"),
        postgresql_where=text(f"until_seq < {LIVE}"),
    ),
    sqlite_with_rowid=False,
)

# A row is a content that was a file's head. Numbers count from 1 in each file. Within one open session the head is
# replaced, keeping its number.
version = Table(
    "version",
    metadata,
    Column("bucket", Integer, ForeignKey("bucket.bucket"), primary_key=True),
    Column("id", Bytes(16), primary_key=True),
    Column("file", Bytes(16), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("base", Bytes(16), nullable=False),  # what its author made it from; empty for nothing
    Column("size", BigInteger, nullable=False),
    Column("hash", Bytes(32), nullable=False),
    Column("slices", Integer, nullable=False),  # how many the manifest has, to leave long ones out of listings
    Column("manifest", Bytes, nullable=False),  # MessagePack of protocol.wire.Manifest
    Column("mtime_ns", BigInteger, nullable=False),
    Column("session", Bytes(16), nullable=False),  # of the author's open file; empty for none
    Column("client", Bytes(16), nullable=False),
    Column("author", Text, nullable=False),  # the subject of the token
    Column("seq", BigInteger, nullable=False),
    Column("committed_ns", BigInteger, nullable=False),
    Index("version_of_file", "bucket", "file", "number"),
)

commit = Table(
    "commit_log",
    metadata,
    Column("bucket", Integer, ForeignKey("bucket.bucket"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3, … without a gap
    Column("time_ns", BigInteger, nullable=False),
    Column("client", Bytes(16), nullable=False),
    Column("author", Text, nullable=False),  # the subject of the token
    Column("batch", Bytes(16), nullable=False),
    Column("ops", Bytes, nullable=False),  # MessagePack of protocol.wire.Commit: what was asked
    Column("answer", Bytes, nullable=False),  # MessagePack of protocol.wire.Committed: what became of it
    Column("change", Bytes, nullable=False),  # MessagePack of protocol.wire.Change: what it touched
    Index("commit_batch", "bucket", "client", "batch", unique=True),
    Index("commit_time", "bucket", "time_ns"),
)

# Retention: the policy of a directory and what is below it, up to the next directory that has one.
retention = Table(
    "retention",
    metadata,
    Column("bucket", Integer, ForeignKey("bucket.bucket"), primary_key=True),
    Column("directory", Bytes(16), primary_key=True),
    Column("policy", Bytes, nullable=False),  # MessagePack of protocol.wire.Policy
    sqlite_with_rowid=False,
)

# Files and directories whose history, and that of all below, retention and purges leave alone.
hold = Table(
    "hold",
    metadata,
    Column("bucket", Integer, ForeignKey("bucket.bucket"), primary_key=True),
    Column("file", Bytes(16), primary_key=True),
    Column("time_ns", BigInteger, nullable=False),
    Column("author", Text, nullable=False),
    Column("note", Text, nullable=False),
    sqlite_with_rowid=False,
)

# Chunks that no version needs, on their way out. See workers.collector.
condemned = Table(
    "condemned",
    metadata,
    Column("bucket", Integer, ForeignKey("bucket.bucket"), primary_key=True),
    Column("chunk", Bytes(32), primary_key=True),
    Column("time_ns", BigInteger, nullable=False),
    Column("doomed", Integer, nullable=False),  # one of metadata.garbage: CONDEMNED, GOING, GONE
    sqlite_with_rowid=False,
)

# What the servers on one database have in common: "signing.key" (PEM) and "audience" of tokens.
secret = Table(
    "secret",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Bytes, nullable=False),
)

# The cluster map, in one row once a server has run on the database; its epoch grows with every change.
cluster = Table(
    "cluster",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),  # 1
    Column("epoch", BigInteger, nullable=False),
    Column("map", Bytes, nullable=False),  # MessagePack of placement.map.ClusterMap
    Column("survey", Bytes),  # MessagePack of metadata.surveys.Survey; absent before the first
)

# What the nodes of the map last said of themselves.
member = Table(
    "member",
    metadata,
    Column("id", Bytes(16), primary_key=True),
    Column("said", Bytes, nullable=False),  # MessagePack of protocol.cluster.Member
    Column("last_seen_ns", BigInteger, nullable=False),
)

# Work that one server at a time does for all.
lease = Table(
    "lease",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Bytes(16), nullable=False),  # the id of a node
    Column("until_ns", BigInteger, nullable=False),
)

# Chunks of which somebody met a bad or missing piece.
repair = Table(
    "repair",
    metadata,
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("chunk", Bytes(32), primary_key=True),
    Column("since_ns", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
