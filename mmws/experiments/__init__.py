"""The laboratory: study, benchmark, loss landscape, learning-rate range, sweep over the stock configs.

Imports everything. It is not in the wheel: run its tools from a checkout of the repository.
"""
