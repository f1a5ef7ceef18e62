"""One training loop and its configurations: fine-tuning, a small ViT from scratch, distillation, QAT."""
