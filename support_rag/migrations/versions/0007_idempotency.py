"""Keys of idempotency are claimed for a limited time by one try."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Nothing has written to this table before this version.
CLAIMS = """
ALTER TABLE idempotency
    ADD COLUMN claim_id uuid NOT NULL,
    ADD COLUMN lease_until timestamptz NOT NULL;
"""


def upgrade() -> None:
    op.execute(CLAIMS)


def downgrade() -> None:
    op.execute("ALTER TABLE idempotency DROP COLUMN claim_id, DROP COLUMN lease_until")
