"""`lcn evaluate` and `lcn predict`."""
