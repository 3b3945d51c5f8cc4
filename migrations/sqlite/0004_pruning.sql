-- What pruning goes by instead of scanning.

-- kept_bytes: of all states in the user's changes, the current ones included, so
-- that less live_bytes it is the history's. tombstones: of deleted keys.
ALTER TABLE users ADD COLUMN kept_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN tombstones INTEGER NOT NULL DEFAULT 0;
UPDATE users SET
    kept_bytes = (SELECT coalesce(sum(octet_length(data)), 0) FROM changes WHERE user_id = users.id),
    tombstones = (SELECT count(*) FROM sessions WHERE user_id = users.id AND data IS NULL);

CREATE INDEX tombstones_by_age ON sessions (updated_at) WHERE data IS NULL;
CREATE INDEX tombstones_by_user ON sessions (user_id, seq) WHERE data IS NULL;
