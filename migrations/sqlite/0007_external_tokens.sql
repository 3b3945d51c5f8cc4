-- Tokens that somebody else signs: no row says that one is good, so rows say which
-- are not any more.

-- Single tokens that ended before their time; login_id is derived from the token.
CREATE TABLE ended_tokens (
    login_id TEXT PRIMARY KEY,
    user_id  TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    at       INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX ended_tokens_by_user ON ended_tokens (user_id);
CREATE INDEX ended_tokens_by_age ON ended_tokens (at);

-- Users who were removed and whom such tokens may still name: what was issued
-- before then does not bring them back. No reference to users: they are gone.
CREATE TABLE removed_users (
    id TEXT PRIMARY KEY,
    at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX removed_users_by_age ON removed_users (at);
