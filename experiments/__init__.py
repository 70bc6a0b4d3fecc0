"""The experiments: one script, one claim of the paper."""
