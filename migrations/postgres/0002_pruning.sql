-- What pruning walks along instead of scanning: changes by age, tombstones by
-- age, tombstones by user. How far it came is kept in meta, `prune.*`.

CREATE INDEX changes_by_age ON changes (at);
CREATE INDEX tombstones_by_age ON sessions (updated_at) WHERE data IS NULL;
CREATE INDEX tombstones_by_user ON sessions (user_id, seq) WHERE data IS NULL;
