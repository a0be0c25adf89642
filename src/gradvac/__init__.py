"""gradvac: train one model on many languages and manage the tension between them."""
