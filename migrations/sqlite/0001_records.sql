-- The records of the replaced Node.js server (users, devices, sessions), with
-- what order, history and fencing need. Times are milliseconds since 1970.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- seq: the user's last change. live_*: what quotas count. version_floor: the
-- highest version of any key whose tombstone was pruned; keys that return start
-- above it. pruned_seq: the highest seq among pruned tombstones; a catch-up
-- from below it must be full.
CREATE TABLE users (
    id            TEXT PRIMARY KEY,
    email         TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    seq           INTEGER NOT NULL DEFAULT 0,
    live_keys     INTEGER NOT NULL DEFAULT 0,
    live_bytes    INTEGER NOT NULL DEFAULT 0,
    version_floor INTEGER NOT NULL DEFAULT 0,
    pruned_seq    INTEGER NOT NULL DEFAULT 0
);

-- One row a run of a node. A node that stopped without a word leaves its
-- devices' rows open; last_beat says until when they were surely connected.
CREATE TABLE nodes (
    boot_id   TEXT PRIMARY KEY,
    node_id   TEXT NOT NULL,
    last_beat INTEGER NOT NULL
) WITHOUT ROWID;

-- connection_id fences: only the connection that a row names may close it; fence
-- counts a device's connections, so that of two the later one is known.
-- disconnected_at is null while connected.
CREATE TABLE devices (
    id              TEXT PRIMARY KEY,
    user_id         TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name            TEXT NOT NULL,
    type            TEXT NOT NULL,
    last_seen       INTEGER NOT NULL,
    metadata        TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    fingerprint     INTEGER NOT NULL,
    connection_id   TEXT,
    fence           INTEGER NOT NULL DEFAULT 0,
    boot_id         TEXT,
    login_id        TEXT,
    connected_at    INTEGER,
    disconnected_at INTEGER,
    revoked_at      INTEGER
);
CREATE INDEX devices_by_user ON devices (user_id);

CREATE TABLE logins (
    id           TEXT PRIMARY KEY,
    user_id      TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    refresh_hash BLOB,
    rotated_hash BLOB,
    rotated_at   INTEGER,
    revoked_at   INTEGER
);
CREATE INDEX logins_by_user ON logins (user_id);

-- The current state of each key; data is null for a tombstone. id is
-- `user:sessionKey`.
CREATE TABLE sessions (
    id          TEXT PRIMARY KEY,
    user_id     TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    session_key TEXT NOT NULL,
    device_id   TEXT,
    data        TEXT,
    version     INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL
);
CREATE UNIQUE INDEX sessions_by_seq ON sessions (user_id, seq);

-- Every change, for repair, history and three-way merge. id only grows: it tells
-- other processes on this file what is new.
CREATE TABLE changes (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id     TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL,
    session_key TEXT NOT NULL,
    version     INTEGER NOT NULL,
    device_id   TEXT,
    at          INTEGER NOT NULL,
    data        TEXT
);
CREATE UNIQUE INDEX changes_by_seq ON changes (user_id, seq);
CREATE INDEX changes_by_version ON changes (user_id, session_key, version);

-- Writes that were applied under a name of the client's, so that a repeat gets
-- the first answer.
CREATE TABLE op_ids (
    user_id      TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    op_id        TEXT NOT NULL,
    content_hash BLOB NOT NULL,
    session_key  TEXT NOT NULL,
    version      INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    at           INTEGER NOT NULL,
    PRIMARY KEY (user_id, op_id)
) WITHOUT ROWID;
CREATE INDEX op_ids_by_age ON op_ids (at);
