"""Data that needs no download, and checks of data."""
