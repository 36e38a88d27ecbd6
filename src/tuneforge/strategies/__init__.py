"""How work is spread: each option returns what Lightning takes as its strategy."""
