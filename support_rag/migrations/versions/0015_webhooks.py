"""Who is told of events, and what they are told."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

WEBHOOKS = """
CREATE TABLE webhooks (
    tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    id uuid NOT NULL,
    url text NOT NULL,
    events text[] NOT NULL,
    secret text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id)
);
CREATE TABLE deliveries (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    webhook_id uuid NOT NULL,
    kind text NOT NULL,
    data jsonb NOT NULL,
    status text NOT NULL CHECK (status IN ('pending', 'delivered', 'dead')),
    attempts integer NOT NULL DEFAULT 0,
    answer integer,
    error text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, webhook_id) REFERENCES webhooks ON DELETE CASCADE
);
CREATE INDEX deliveries_newest ON deliveries (tenant_id, created_at DESC, id);
CREATE INDEX deliveries_of_webhook ON deliveries (tenant_id, webhook_id);
"""

KINDS = """
ALTER TABLE jobs DROP CONSTRAINT jobs_kind_check;
ALTER TABLE jobs ADD CONSTRAINT jobs_kind_check CHECK (kind IN ({kinds}));
"""

POLICY = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON {table}
    USING (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid);
"""


def upgrade() -> None:
    op.execute(WEBHOOKS)
    for table in ("webhooks", "deliveries"):
        op.execute(POLICY.format(table=table))
    op.execute(KINDS.format(kinds="'ingest', 'reindex', 'retire', 'deliver'"))


def downgrade() -> None:
    op.execute("DELETE FROM jobs WHERE kind = 'deliver'")
    op.execute(KINDS.format(kinds="'ingest', 'reindex', 'retire'"))
    op.execute("DROP TABLE deliveries")
    op.execute("DROP TABLE webhooks")
