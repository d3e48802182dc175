"""Methods of alignment as pure functions: one per file."""
