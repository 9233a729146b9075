"""A reply says who wrote it."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE messages ADD COLUMN generator text, ADD COLUMN model text")


def downgrade() -> None:
    op.execute("ALTER TABLE messages DROP COLUMN generator, DROP COLUMN model")
