"""Report on a model's predictions: figures, confusion matrix and errors."""
