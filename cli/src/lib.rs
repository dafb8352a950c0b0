//! The one binary: tandem adm, daemon, status, demo.
