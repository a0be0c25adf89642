"""The gradient engine: task gradients, their Gram matrices, and the combined gradient."""
