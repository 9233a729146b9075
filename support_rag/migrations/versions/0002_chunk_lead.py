"""What a chunk stands under, where it was cut off from it."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE chunks ADD COLUMN lead text NOT NULL DEFAULT ''")


def downgrade() -> None:
    op.execute("ALTER TABLE chunks DROP COLUMN lead")
