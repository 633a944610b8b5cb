"""Files that are always whole: small JSON files, training states, safe names, syncing to disk."""
