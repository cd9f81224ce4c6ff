"""Measurements of multiraft, and of what it can be held against; figures and how they were taken are in README.md."""
