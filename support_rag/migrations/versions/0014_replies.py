"""A question names its reply before it is made; a reply can be cancelled, or give way to a newer one."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# Whoever owns the tables is bound by row-level security too: it is lifted for the old rows.
NAMES = """
ALTER TABLE messages
    ADD COLUMN status text NOT NULL DEFAULT 'complete' CHECK (status IN ('complete', 'cancelled')),
    ADD COLUMN replaced_at timestamptz,
    ADD COLUMN reply_id uuid;
ALTER TABLE messages NO FORCE ROW LEVEL SECURITY;
UPDATE messages q SET reply_id = coalesce(
    (SELECT r.id FROM messages r WHERE r.tenant_id = q.tenant_id
        AND r.conversation_id = q.conversation_id AND r.seq = q.seq + 1),
    gen_random_uuid()
) WHERE q.role = 'user';
ALTER TABLE messages FORCE ROW LEVEL SECURITY;
ALTER TABLE messages DROP CONSTRAINT messages_tenant_id_conversation_id_seq_key;
CREATE UNIQUE INDEX messages_number ON messages (tenant_id, conversation_id, seq)
    WHERE replaced_at IS NULL;
CREATE INDEX messages_of_conversation ON messages (tenant_id, conversation_id, seq);
CREATE UNIQUE INDEX messages_reply ON messages (tenant_id, reply_id) WHERE reply_id IS NOT NULL;
"""

BACK = """
ALTER TABLE messages NO FORCE ROW LEVEL SECURITY;
DELETE FROM messages WHERE replaced_at IS NOT NULL OR status = 'cancelled';
ALTER TABLE messages FORCE ROW LEVEL SECURITY;
DROP INDEX messages_number, messages_of_conversation, messages_reply;
ALTER TABLE messages ADD UNIQUE (tenant_id, conversation_id, seq),
    DROP COLUMN status, DROP COLUMN replaced_at, DROP COLUMN reply_id;
"""


def upgrade() -> None:
    op.execute(NAMES)


def downgrade() -> None:
    op.execute(BACK)
