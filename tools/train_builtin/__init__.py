"""The built-in model: its handbook, its training, its export and its evaluation (docs/builtin-model.md)."""
