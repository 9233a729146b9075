"""Traces in a table of their own: lists of messages do not read them, and only admins do."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# No foreign key to indexes: a trace outlives the index that its hits are from.
TRACES = """
CREATE TABLE traces (
    tenant_id uuid NOT NULL,
    message_id uuid NOT NULL,
    index_id uuid,
    facts jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, message_id),
    FOREIGN KEY (tenant_id, message_id) REFERENCES messages ON DELETE CASCADE
);
"""

POLICY = """
ALTER TABLE traces ENABLE ROW LEVEL SECURITY;
ALTER TABLE traces FORCE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON traces
    USING (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid);
"""


def upgrade() -> None:
    op.execute(TRACES)
    op.execute("ALTER TABLE messages NO FORCE ROW LEVEL SECURITY")
    op.execute(
        """
        INSERT INTO traces (tenant_id, message_id, facts, created_at)
        SELECT tenant_id, id, trace, created_at FROM messages WHERE role = 'assistant'
        """
    )
    op.execute("ALTER TABLE messages FORCE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE messages DROP COLUMN trace")
    op.execute(POLICY)


def downgrade() -> None:
    op.execute("ALTER TABLE messages ADD COLUMN trace jsonb NOT NULL DEFAULT '{}'")
    for table in ("messages", "traces"):
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    op.execute(
        """
        UPDATE messages m SET trace = t.facts FROM traces t
        WHERE t.tenant_id = m.tenant_id AND t.message_id = m.id
        """
    )
    op.execute("ALTER TABLE messages FORCE ROW LEVEL SECURITY")
    op.execute("DROP TABLE traces")
