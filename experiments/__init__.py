"""Experiment modules: each asks one question, runs, and writes its answer under ``results/``."""
