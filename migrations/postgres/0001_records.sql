-- The records of the replaced Node.js server (users, devices, sessions), with
-- what order, history and fencing need. Times are milliseconds since 1970. JSON
-- is text, never jsonb: digits, duplicate keys and \u0000 stay as they were sent.

CREATE TABLE meta (
    name  text PRIMARY KEY,
    value text NOT NULL
);

-- seq: the user's last change. live_*: what quotas count. version_floor: the
-- highest version of any key whose tombstone was pruned; keys that return start
-- above it. pruned_seq: the highest seq among pruned tombstones; a catch-up
-- from below it must be full. The fill factor leaves room for a head that moves
-- with each write, so that no index has to follow it.
CREATE TABLE users (
    id            uuid PRIMARY KEY,
    email         text NOT NULL UNIQUE,
    password_hash text NOT NULL,
    created_at    bigint NOT NULL,
    updated_at    bigint NOT NULL,
    seq           bigint NOT NULL DEFAULT 0,
    live_keys     bigint NOT NULL DEFAULT 0,
    live_bytes    bigint NOT NULL DEFAULT 0,
    version_floor bigint NOT NULL DEFAULT 0,
    pruned_seq    bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

-- One row a run of a node. A node that stopped without a word leaves its
-- devices' rows open; last_beat says until when they were surely connected.
CREATE TABLE nodes (
    boot_id   uuid PRIMARY KEY,
    node_id   text NOT NULL,
    last_beat bigint NOT NULL
) WITH (fillfactor = 70);

-- connection_id fences: only the connection that a row names may close it; fence
-- counts a device's connections, so that of two the later one is known.
-- disconnected_at is null while connected.
CREATE TABLE devices (
    id              uuid PRIMARY KEY,
    user_id         uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name            text NOT NULL,
    type            text NOT NULL,
    last_seen       bigint NOT NULL,
    metadata        text NOT NULL,
    created_at      bigint NOT NULL,
    fingerprint     bigint NOT NULL,
    connection_id   uuid,
    fence           bigint NOT NULL DEFAULT 0,
    boot_id         uuid,
    login_id        uuid,
    connected_at    bigint,
    disconnected_at bigint,
    revoked_at      bigint
) WITH (fillfactor = 80);
CREATE INDEX devices_by_user ON devices (user_id);

CREATE TABLE logins (
    id           uuid PRIMARY KEY,
    user_id      uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at   bigint NOT NULL,
    expires_at   bigint NOT NULL,
    refresh_hash bytea,
    rotated_hash bytea,
    rotated_at   bigint,
    revoked_at   bigint
);
CREATE INDEX logins_by_user ON logins (user_id);

-- The current state of each key; data is null for a tombstone. id is
-- `user:sessionKey`.
CREATE TABLE sessions (
    id          text PRIMARY KEY,
    user_id     uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    session_key text NOT NULL,
    device_id   uuid,
    data        text,
    version     bigint NOT NULL,
    seq         bigint NOT NULL,
    created_at  bigint NOT NULL,
    updated_at  bigint NOT NULL
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX sessions_by_seq ON sessions (user_id, seq);

-- Every change, for repair, history and three-way merge.
CREATE TABLE changes (
    user_id     uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    seq         bigint NOT NULL,
    session_key text NOT NULL,
    version     bigint NOT NULL,
    device_id   uuid,
    at          bigint NOT NULL,
    data        text
);
CREATE UNIQUE INDEX changes_by_seq ON changes (user_id, seq);
CREATE INDEX changes_by_version ON changes (user_id, session_key, version);

-- Writes that were applied under a name of the client's, so that a repeat gets
-- the first answer.
CREATE TABLE op_ids (
    user_id      uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    op_id        text NOT NULL,
    content_hash bytea NOT NULL,
    session_key  text NOT NULL,
    version      bigint NOT NULL,
    seq          bigint NOT NULL,
    at           bigint NOT NULL,
    PRIMARY KEY (user_id, op_id)
);
CREATE INDEX op_ids_by_age ON op_ids (at);

-- Whose head was moved by which transaction. A reader that has seen all below
-- pg_snapshot_xmin has missed nothing, in whatever order they commit.
CREATE TABLE moves (
    xid     bigint NOT NULL,
    user_id uuid NOT NULL,
    seq     bigint NOT NULL,
    at      bigint NOT NULL
);
CREATE INDEX moves_by_xid ON moves (xid);

-- The last batch of each opened store, written in that batch's transaction: when
-- the answer to a COMMIT is lost, this row tells whether it happened.
CREATE TABLE commits (
    writer uuid PRIMARY KEY,
    batch  bigint NOT NULL,
    at     bigint NOT NULL
) WITH (fillfactor = 50);
