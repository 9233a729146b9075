"""A conversation says which customer of the caller it belongs to."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "ALTER TABLE conversations ADD COLUMN end_user text NOT NULL DEFAULT '',"
        " ADD COLUMN metadata jsonb NOT NULL DEFAULT '{}'"
    )
    op.execute("CREATE INDEX conversations_end_user ON conversations (tenant_id, end_user)")


def downgrade() -> None:
    op.execute("ALTER TABLE conversations DROP COLUMN end_user, DROP COLUMN metadata")
