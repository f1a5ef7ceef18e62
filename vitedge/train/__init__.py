"""One training loop; fine-tuning, distillation and QAT are configurations of it."""
