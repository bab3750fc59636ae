"""What `mmneuron doctor` looks at: packages, machine, services, what will be slow; no model is loaded."""
