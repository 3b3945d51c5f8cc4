-- What pruning goes by instead of scanning: changes by age, tombstones by age,
-- tombstones by user. How far it came is kept in meta, `prune.*`.

-- kept_bytes: of all states in the user's changes, the current ones included, so
-- that less live_bytes it is the history's. tombstones: of deleted keys.
ALTER TABLE users ADD COLUMN kept_bytes bigint NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN tombstones bigint NOT NULL DEFAULT 0;

CREATE INDEX changes_by_age ON changes (at);
CREATE INDEX tombstones_by_age ON sessions (updated_at) WHERE data IS NULL;
CREATE INDEX tombstones_by_user ON sessions (user_id, seq) WHERE data IS NULL;
