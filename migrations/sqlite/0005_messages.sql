-- Device messages that wait, and the ids under which messages were taken.
-- Rows go as they are delivered; their numbers only grow, which gives them
-- their order and tells the regular ask what is new.

CREATE TABLE messages (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id          TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    device_id        TEXT NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    message_id       TEXT NOT NULL,
    source_device_id TEXT NOT NULL,
    body             TEXT NOT NULL,
    bytes            INTEGER NOT NULL,
    sent_at          INTEGER NOT NULL,
    expires_at       INTEGER NOT NULL
);
CREATE UNIQUE INDEX messages_by_message ON messages (device_id, message_id);
CREATE INDEX messages_by_device ON messages (device_id, id, bytes);
CREATE INDEX messages_by_expiry ON messages (expires_at);
CREATE INDEX messages_by_user ON messages (user_id);

CREATE TABLE message_ids (
    user_id      TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    message_id   TEXT NOT NULL,
    device_id    TEXT NOT NULL,
    content_hash BLOB NOT NULL,
    at           INTEGER NOT NULL,
    PRIMARY KEY (user_id, message_id, device_id)
) WITHOUT ROWID;
CREATE INDEX message_ids_by_age ON message_ids (at);
