"""A Jupyter-driven RAG workbench for customer support, and the service its notebooks export.

Modules:

- `support_rag.migrations.versions.0001_schema`: The first schema: every tenant table under forced row-level security."""

__version__ = "0.1.0"
