"""Per-task gradients in other people's training loops; each module needs the library it names."""
