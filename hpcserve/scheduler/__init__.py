"""Which tokens run next. No torch, no sockets."""
