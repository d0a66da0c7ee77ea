"""lvmmed: self-supervised encoders of medical images by second-order graph matching."""

__version__ = "0.1.0"
