//! Views of the status: drbdadm's text and JSON, and the one for people.

pub(crate) mod adm;
pub(crate) mod events;
mod explain;
pub(crate) mod human;
