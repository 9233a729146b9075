"""Tags of documents, and which documents a question was asked of."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE documents ADD COLUMN tags text[] NOT NULL DEFAULT '{}'")
    op.execute("ALTER TABLE messages ADD COLUMN filter jsonb")


def downgrade() -> None:
    op.execute("ALTER TABLE messages DROP COLUMN filter")
    op.execute("ALTER TABLE documents DROP COLUMN tags")
