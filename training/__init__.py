"""Recipes as data, and the loop that runs them."""
