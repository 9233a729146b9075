"""A Jupyter-driven RAG workbench for customer support, and the service its notebooks export."""

__version__ = "0.1.0"
