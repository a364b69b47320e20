"""One workload per file: the file's name is the workload's, `EntryClass` its parameters."""
