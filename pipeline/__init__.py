"""Data-free synthesis, quantization and distillation of Vision Transformers on Ray."""
