"""Reading and writing files safely: JSON files, training states, locks, names, hashes, syncing."""
