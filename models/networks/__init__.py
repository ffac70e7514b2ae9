"""The networks, one a file; they need torch, and only training, export and the torch engine import them."""
