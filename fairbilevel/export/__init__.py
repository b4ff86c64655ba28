"""Export: sparse models as files that load with one call and execute nothing."""

from fairbilevel.export._model import ModelFiles, load_model, load_network, save_model, save_network

__all__ = ["ModelFiles", "load_model", "load_network", "save_model", "save_network"]
