"""From the ViT to ONNX, and checks on the graph."""
