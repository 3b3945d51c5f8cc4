-- A repeat of a message that waited for too long is told so.

ALTER TABLE message_ids ADD COLUMN expired INTEGER NOT NULL DEFAULT 0;
