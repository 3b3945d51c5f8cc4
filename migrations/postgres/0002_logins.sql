-- Logins that end before their time.

-- tokens_since: tokens that belong to no login (those of the replaced server)
-- count only if they were issued since then.
ALTER TABLE users ADD COLUMN tokens_since bigint NOT NULL DEFAULT 0;

-- What was ended lately, for nodes that were not told. No reference to users:
-- the end of an account is a row here too. kind is user, device, login or
-- connection; subject is the device, login or connection, null for tokens that
-- belong to no login. xid: the transaction that wrote it. A reader that has seen
-- all below pg_snapshot_xmin has missed nothing, in whatever order they commit.
CREATE TABLE revocations (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid     bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    user_id uuid NOT NULL,
    kind    text NOT NULL,
    subject uuid,
    at      bigint NOT NULL
);
CREATE INDEX revocations_by_xid ON revocations (xid);
CREATE INDEX revocations_by_age ON revocations (at);

-- For pruning.
CREATE INDEX logins_by_end ON logins (expires_at);
CREATE INDEX logins_revoked ON logins (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX devices_revoked ON devices (revoked_at) WHERE revoked_at IS NOT NULL;
