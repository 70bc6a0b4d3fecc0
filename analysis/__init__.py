"""From the run store to figures, tables and the report: read-only, never trains."""
