"""Code of the tools: load and check configs, run the toolkit's scripts, report, fold, publish, export."""
