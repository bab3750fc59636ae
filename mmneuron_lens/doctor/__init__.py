"""What `mmneuron doctor` looks at: packages, machine, services and what will be slow; loads no model, asks no server."""
