"""What customers say of a reply, and which release is tried on a share of the conversations."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

FEEDBACK = """
CREATE TABLE feedback (
    tenant_id uuid NOT NULL,
    message_id uuid NOT NULL,
    verdict text NOT NULL CHECK (verdict IN ('up', 'down')),
    reason text CHECK (reason IN ('wrong', 'incomplete', 'outdated', 'irrelevant', 'rude')),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, message_id),
    FOREIGN KEY (tenant_id, message_id) REFERENCES messages ON DELETE CASCADE,
    CHECK (reason IS NULL OR verdict = 'down')
);
"""

# A canary that was stopped stays: what came of it is read from the conversations of its time.
CANARIES = """
CREATE TABLE canaries (
    tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    id uuid NOT NULL,
    release_id text NOT NULL,
    index_digest text NOT NULL,
    parameters jsonb NOT NULL,
    share real NOT NULL CHECK (share > 0 AND share <= 0.5),
    why text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    stopped_at timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX canaries_one_runs ON canaries (tenant_id) WHERE stopped_at IS NULL;
"""

POLICY = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON {table}
    USING (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid);
"""


def upgrade() -> None:
    op.execute(FEEDBACK)
    op.execute(CANARIES)
    for table in ("feedback", "canaries"):
        op.execute(POLICY.format(table=table))


def downgrade() -> None:
    op.execute("DROP TABLE canaries")
    op.execute("DROP TABLE feedback")
