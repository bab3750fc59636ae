"""How the embedded models were made. Nothing outside imports this."""
