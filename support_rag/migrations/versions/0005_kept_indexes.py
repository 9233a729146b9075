"""Indexes that are kept to go back to, and the labelled questions that a switch is measured on."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# A label names its document by source, which a new version keeps; no foreign key, because a label
# is worth keeping when its document is gone.
LABELS = """
CREATE TABLE labels (
    tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    id uuid NOT NULL,
    question text NOT NULL,
    source text NOT NULL,
    start_char integer NOT NULL CHECK (start_char >= 0),
    end_char integer NOT NULL CHECK (end_char > start_char),
    text text NOT NULL,
    made_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, question, source, start_char, end_char)
);
ALTER TABLE labels ENABLE ROW LEVEL SECURITY;
ALTER TABLE labels FORCE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON labels
    USING (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid);
"""


def upgrade() -> None:
    op.execute(
        "ALTER TABLE indexes ADD COLUMN kept_until timestamptz, "
        "ADD COLUMN comparison jsonb, ADD COLUMN override text"
    )
    op.execute("ALTER TABLE jobs DROP CONSTRAINT jobs_kind_check")
    op.execute(
        "ALTER TABLE jobs ADD CONSTRAINT jobs_kind_check "
        "CHECK (kind IN ('ingest', 'reindex', 'retire'))"
    )
    op.execute(LABELS)


def downgrade() -> None:
    op.execute("DROP TABLE labels")
    op.execute("DELETE FROM jobs WHERE kind = 'retire'")
    op.execute("ALTER TABLE jobs DROP CONSTRAINT jobs_kind_check")
    op.execute(
        "ALTER TABLE jobs ADD CONSTRAINT jobs_kind_check CHECK (kind IN ('ingest', 'reindex'))"
    )
    op.execute(
        "ALTER TABLE indexes DROP COLUMN kept_until, DROP COLUMN comparison, DROP COLUMN override"
    )
