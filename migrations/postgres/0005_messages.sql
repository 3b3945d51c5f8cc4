-- Device messages that wait, and the ids under which messages were taken.
-- Rows go as they are delivered; their numbers give those of one device their
-- order (their user is locked while they are written); xid tells the regular ask
-- what is new.

CREATE TABLE messages (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid              bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    user_id          uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    device_id        uuid NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    message_id       text NOT NULL,
    source_device_id uuid NOT NULL,
    body             text NOT NULL,
    bytes            bigint NOT NULL,
    sent_at          bigint NOT NULL,
    expires_at       bigint NOT NULL
);
CREATE UNIQUE INDEX messages_by_message ON messages (device_id, message_id);
CREATE INDEX messages_by_device ON messages (device_id, id);
CREATE INDEX messages_by_expiry ON messages (expires_at);
CREATE INDEX messages_by_xid ON messages (xid);
CREATE INDEX messages_by_user ON messages (user_id);

CREATE TABLE message_ids (
    user_id      uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    message_id   text NOT NULL,
    device_id    uuid NOT NULL,
    content_hash bytea NOT NULL,
    at           bigint NOT NULL,
    PRIMARY KEY (user_id, message_id, device_id)
);
CREATE INDEX message_ids_by_age ON message_ids (at);
