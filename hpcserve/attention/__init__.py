"""One attention backend per module."""
