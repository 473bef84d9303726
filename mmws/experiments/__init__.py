"""Experiments with mmws: study, benchmark, loss landscape, learning-rate range, sweep over the stock configs.

May import every package of mmws. Not in the wheel: run the tools of this package from a checkout.
"""
