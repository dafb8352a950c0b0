//! Views of the status: drbdadm's text and JSON, and the one for people.

pub(crate) mod adm;
mod explain;
pub(crate) mod human;
