"""Jobs that survive: pieces of work, each a job on a server whose id is on disk before anyone waits for it."""
