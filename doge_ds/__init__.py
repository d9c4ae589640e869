"""Learn the mixture of text domains to pretrain a language model on (DoGE, arXiv 2310.15393), and pretrain on it."""

__version__ = "0.1.0"
