"""What `mmneuron doctor` looks at: packages, machine, services, what will be slow. No model is loaded, no server asked."""
