"""One training by several processes, each with a device of its own; a process is a rank."""
