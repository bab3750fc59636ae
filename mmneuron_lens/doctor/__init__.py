"""What `mmneuron doctor` looks at: packages, machine, services, speed; it loads no model and asks no server."""
