"""Where extracted text stands in the file that was sent."""

# Until now the text of plain text and Markdown was the file's own, so every character is where it
# was. Their chunks are not written anew, because each would go into its vector index again: a chunk
# without a place, of a document with one, stands where its text does.

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE documents ADD COLUMN source_map jsonb")
    op.execute("ALTER TABLE chunks ADD COLUMN source_start integer, ADD COLUMN source_end integer")
    op.execute("ALTER TABLE documents NO FORCE ROW LEVEL SECURITY")
    op.execute(
        """
        UPDATE documents SET source_map = jsonb_build_array(
            jsonb_build_array(0, 0), jsonb_build_array(char_length(text), char_length(text)))
        WHERE text IS NOT NULL AND content_type IN ('text/plain', 'text/markdown')
        """
    )
    op.execute("ALTER TABLE documents FORCE ROW LEVEL SECURITY")


def downgrade() -> None:
    op.execute("ALTER TABLE documents DROP COLUMN source_map")
    op.execute("ALTER TABLE chunks DROP COLUMN source_start, DROP COLUMN source_end")
