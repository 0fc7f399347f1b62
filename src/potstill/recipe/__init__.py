"""Recipes: frozen plain data that says what to distil, from what, into what and how to prove it."""
