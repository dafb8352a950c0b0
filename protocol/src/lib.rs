//! The packets of the replication link and the messages of the control socket, as bytes. Pure.
