"""One architecture per module; the module name is the checkpoint's model_type."""
