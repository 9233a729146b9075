"""The first schema: every tenant table under forced row-level security."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TENANTS = """
CREATE TABLE tenants (
    tenant_id uuid PRIMARY KEY,
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE users (
    tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    id uuid NOT NULL,
    email text NOT NULL,
    password_hash text NOT NULL,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'agent', 'customer')),
    created_at timestamptz NOT NULL DEFAULT now(),
    disabled_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, email)
);
"""

# Read before any tenant is known. Neither may hold content, and neither refers to a tenant table.
GLOBAL = """
CREATE TABLE sign_ins (
    key text PRIMARY KEY,
    tenant_id uuid NOT NULL,
    user_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE jobs (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('ingest', 'reindex')),
    target_id uuid NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    lease_until timestamptz,
    leased_by text,
    rung_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (kind, target_id)
);
"""

DOCUMENTS = """
CREATE TABLE documents (
    tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    id uuid NOT NULL,
    source text NOT NULL,
    title text NOT NULL,
    content_type text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    content bytea NOT NULL,
    content_hash text NOT NULL,
    version integer NOT NULL DEFAULT 1,
    ready_version integer,
    text text,
    blocks jsonb,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN (
        'pending', 'parsing', 'chunking', 'embedding', 'storing', 'ready', 'failed')),
    error text,
    error_code text,
    n_bytes integer NOT NULL DEFAULT 0,
    n_chunks integer NOT NULL DEFAULT 0,
    n_tokens integer NOT NULL DEFAULT 0,
    truncated_tokens integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    ready_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, source)
);
CREATE INDEX documents_newest ON documents (tenant_id, created_at DESC, id);

CREATE SEQUENCE chunk_numbers;

CREATE TABLE indexes (
    tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    id uuid NOT NULL,
    digest text NOT NULL,
    dim integer NOT NULL CHECK (dim BETWEEN 1 AND 4000),
    model text NOT NULL,
    parameters jsonb NOT NULL,
    status text NOT NULL DEFAULT 'building' CHECK (status IN (
        'building', 'ready', 'active', 'retired')),
    first_number bigint NOT NULL DEFAULT nextval('chunk_numbers'),
    created_at timestamptz NOT NULL DEFAULT now(),
    activated_at timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE UNIQUE INDEX indexes_active ON indexes (tenant_id) WHERE status = 'active';
CREATE UNIQUE INDEX indexes_live ON indexes (tenant_id, digest) WHERE status <> 'retired';

CREATE TABLE staged_vectors (
    tenant_id uuid NOT NULL,
    document_id uuid NOT NULL,
    text_digest text NOT NULL,
    model text NOT NULL,
    embedding halfvec NOT NULL,
    PRIMARY KEY (tenant_id, document_id, text_digest, model),
    FOREIGN KEY (tenant_id, document_id) REFERENCES documents ON DELETE CASCADE
);
"""

# A vector stored out of line would cost one more look-up for each row of an exact scan.
# No cascade from documents to chunks: the postings must be told, so the code deletes both.
CHUNKS = """
CREATE TABLE chunks (
    tenant_id uuid NOT NULL,
    index_id uuid NOT NULL,
    id uuid NOT NULL,
    document_id uuid NOT NULL,
    ordinal integer NOT NULL,
    start_char integer NOT NULL,
    end_char integer NOT NULL,
    number integer NOT NULL,
    n_tokens integer NOT NULL,
    n_terms integer NOT NULL,
    dim integer NOT NULL,
    heading_path text[] NOT NULL,
    text text NOT NULL,
    embedding halfvec NOT NULL CHECK (vector_dims(embedding) = dim),
    PRIMARY KEY (tenant_id, index_id, id),
    UNIQUE (tenant_id, index_id, number),
    FOREIGN KEY (tenant_id, document_id) REFERENCES documents,
    FOREIGN KEY (tenant_id, index_id) REFERENCES indexes ON DELETE CASCADE
);
ALTER TABLE chunks ALTER embedding SET STORAGE PLAIN;
CREATE INDEX chunks_document ON chunks (tenant_id, document_id, index_id);
CREATE INDEX chunks_hnsw_384 ON chunks
    USING hnsw ((embedding::halfvec(384)) halfvec_cosine_ops) WHERE dim = 384;
CREATE INDEX chunks_hnsw_1536 ON chunks
    USING hnsw ((embedding::halfvec(1536)) halfvec_cosine_ops) WHERE dim = 1536;
"""

# No foreign key from postings: a document has thousands, and checking one takes longer than storing
# it. They go with their segment, so the code deletes both.
LEXICAL = """
CREATE SEQUENCE segment_numbers;

CREATE TABLE segments (
    tenant_id uuid NOT NULL,
    index_id uuid NOT NULL,
    id bigint NOT NULL DEFAULT nextval('segment_numbers'),
    n_chunks bigint NOT NULL,
    n_terms bigint NOT NULL,
    PRIMARY KEY (tenant_id, index_id, id),
    FOREIGN KEY (tenant_id, index_id) REFERENCES indexes ON DELETE CASCADE
);

CREATE TABLE postings (
    tenant_id uuid NOT NULL,
    index_id uuid NOT NULL,
    term text COLLATE "C" NOT NULL,
    segment_id bigint NOT NULL,
    entries bytea NOT NULL,
    PRIMARY KEY (tenant_id, index_id, segment_id, term)
);
ALTER TABLE postings ALTER entries SET STORAGE EXTERNAL;

CREATE TABLE dead (
    tenant_id uuid NOT NULL,
    index_id uuid NOT NULL,
    number integer NOT NULL,
    n_terms integer NOT NULL,
    PRIMARY KEY (tenant_id, index_id, number),
    FOREIGN KEY (tenant_id, index_id) REFERENCES indexes ON DELETE CASCADE
);
"""

CONVERSATIONS = """
CREATE TABLE conversations (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    title text NOT NULL DEFAULT '',
    status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'closed', 'handed_off')),
    summary text NOT NULL DEFAULT '',
    summary_seq integer NOT NULL DEFAULT 0,
    next_seq integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users
);
CREATE INDEX conversations_newest ON conversations (tenant_id, created_at DESC, id);
CREATE INDEX conversations_of_user ON conversations (tenant_id, user_id, created_at DESC, id);

CREATE TABLE messages (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    conversation_id uuid NOT NULL,
    seq integer NOT NULL,
    role text NOT NULL CHECK (role IN ('user', 'assistant')),
    content text NOT NULL,
    sources jsonb NOT NULL DEFAULT '[]',
    confidence real,
    decision text,
    reason text,
    release_id text,
    trace jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, conversation_id, seq),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations ON DELETE CASCADE
);
"""

TENANT_TABLES = (
    "tenants", "users", "documents", "indexes", "staged_vectors", "chunks",
    "segments", "postings", "dead", "conversations", "messages",
)  # fmt: skip

POLICY = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON {table}
    USING (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid);
"""


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    for statements in (TENANTS, GLOBAL, DOCUMENTS, CHUNKS, LEXICAL, CONVERSATIONS):
        op.execute(statements)
    for table in TENANT_TABLES:
        op.execute(POLICY.format(table=table))
