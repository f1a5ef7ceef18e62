"""ONNX graphs: written (`builder`), read (`matcher`), edited (`editor`), and run on images (`session`, `ranges`)."""
