"""Code of the tools: load and check configs, run the toolkit's scripts, report, fold, publish, export.

May import every package of mmws but :mod:`mmws.experiments`, and torch, mmengine, yaml, rich, matplotlib, onnx,
onnxruntime.
"""
