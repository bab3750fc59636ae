"""Your own NDIF: its environment, its services, and the command that starts and ends them. Linux, loopback only."""
