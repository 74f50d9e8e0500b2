"""Solvers of an attack, one lane each."""
