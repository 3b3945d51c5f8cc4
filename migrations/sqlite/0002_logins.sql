-- Logins that end before their time.

-- tokens_since: tokens that belong to no login (those of the replaced server)
-- count only if they were issued since then.
ALTER TABLE users ADD COLUMN tokens_since INTEGER NOT NULL DEFAULT 0;

-- What was ended lately, for nodes that were not told. No reference to users:
-- the end of an account is a row here too. kind is user, device or login;
-- subject is the device or login, null for tokens that belong to no login.
CREATE TABLE revocations (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id TEXT NOT NULL,
    kind    TEXT NOT NULL,
    subject TEXT,
    at      INTEGER NOT NULL
);
CREATE INDEX revocations_by_age ON revocations (at);

-- For pruning.
CREATE INDEX logins_by_end ON logins (expires_at);
CREATE INDEX logins_revoked ON logins (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX devices_revoked ON devices (revoked_at) WHERE revoked_at IS NOT NULL;
