"""Remote procedure calls over links: unary and streamed, with deadlines, credits and cancel."""
