//! drbd.conf: text in, typed model and diagnostics out.
