-- The tables of the first format, with a bucket that has a change waiting.
-- Facts about this state directory: client (16 bytes, our identity towards the server), server
-- (16 bytes, whose data this is), boot (the kernel's boot id when it was last opened).
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;

-- Buckets seen. seq: the place in the bucket's log up to which this database knows every change.
CREATE TABLE bucket (
    id INTEGER PRIMARY KEY,
    uuid BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    root INTEGER NOT NULL,          -- inode of its root directory
    chunk_key BLOB NOT NULL,
    seq INTEGER NOT NULL,
    usage BLOB NOT NULL             -- MessagePack of wire.Usage
);

-- Files known. Times in nanoseconds. A row with nlink 0 is an open or unsent file without a name.
CREATE TABLE inode (
    ino INTEGER PRIMARY KEY,
    bucket INTEGER NOT NULL,        -- 0: the root above all buckets
    file_id BLOB NOT NULL,
    mode INTEGER NOT NULL,          -- st_mode with type bits
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    rdev INTEGER NOT NULL,
    nlink INTEGER NOT NULL,
    size INTEGER NOT NULL,
    holes INTEGER NOT NULL,         -- bytes of size that are known to take no room
    atime INTEGER NOT NULL,
    mtime INTEGER NOT NULL,
    ctime INTEGER NOT NULL,
    parent INTEGER NOT NULL,        -- a directory it has a name in; 0 for the root
    complete INTEGER NOT NULL,      -- directory: every name it has is in dentry
    stale INTEGER NOT NULL,         -- the server has newer attributes or content
    version BLOB NOT NULL,          -- head version the content below is, or was made from
    target BLOB NOT NULL,           -- of a symbolic link
    xattrs BLOB,                    -- MessagePack of a map, NULL for none
    content BLOB                    -- packed slices of `version`, NULL when not known
);

-- Names. ino 0: something changed there, ask the server.
CREATE TABLE dentry (
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,
    ino INTEGER NOT NULL,
    PRIMARY KEY (parent, name)
) WITHOUT ROWID;

-- Content that lies over `inode.content`: a range of a slab, of a chunk, or (neither) zeros.
CREATE TABLE staged (
    ino INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    slab INTEGER NOT NULL,          -- 0: not in a slab
    position INTEGER NOT NULL,      -- in the slab or chunk
    gen INTEGER NOT NULL,           -- of the writing; see staging.py
    chunk BLOB NOT NULL,            -- empty: not in a chunk
    PRIMARY KEY (ino, offset)
) WITHOUT ROWID;

-- What the server has not acknowledged, oldest first. Values are bound when a batch is made: a row
-- says only what kind of change concerns which file and name.
CREATE TABLE journal (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    bucket INTEGER NOT NULL,
    op INTEGER NOT NULL,            -- journal.Op
    ino INTEGER NOT NULL,
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,
    ino2 INTEGER NOT NULL,
    parent2 INTEGER NOT NULL,
    name2 BLOB NOT NULL,
    time INTEGER NOT NULL,
    mask INTEGER NOT NULL           -- journal.Field, for attribute changes
);

-- The commit on its way, kept as sent so that a retry after a restart is the same batch.
CREATE TABLE batch (
    bucket INTEGER PRIMARY KEY,
    body BLOB NOT NULL,             -- MessagePack of wire.Commit
    rows BLOB NOT NULL              -- MessagePack of batches.Sent: which journal rows it answers
);

-- The chunk cache: plaintext of chunks, in slabs. stamp orders eviction, oldest first.
CREATE TABLE chunk (
    id BLOB PRIMARY KEY,
    slab INTEGER NOT NULL,
    position INTEGER NOT NULL,
    length INTEGER NOT NULL,
    stamp INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX chunk_stamp ON chunk (stamp);
CREATE INDEX chunk_slab ON chunk (slab);
INSERT INTO bucket VALUES (1, x'01', 'photos', 1, x'02', 7, x'80');
INSERT INTO journal VALUES (1, 1, 1, 5, 1, x'61', 0, 0, x'', 9, 0);
PRAGMA user_version = 1;
