//! The combined state of one volume towards its peer, and the ordered tables of rules that judge its changes.
//!
//! Everything here is a pure function on plain values (docs/spec/state-machine.md sections 1 and 2). The engine
//! asks in this order:
//!
//! 1. [`Request::apply`] lays the requested fields over the current [`State`];
//! 2. [`evaluate`] sanitises ([`sanitise::sanitise`]) and judges the result ([`rules`]), giving a [`Verdict`];
//! 3. [`cluster_wide`] says whether the peer has to agree first ([`remote`]);
//! 4. once the state is stored, [`effects::derive`] says what follows from the change, and in which order.

pub mod effects;
pub mod remote;
pub mod result;
pub mod rules;
pub mod sanitise;
pub mod word;

pub use effects::{
    ConnectionEffect, Deferred, EffectContext, Effects, Immediate, contact_lost, derive,
};
pub use remote::{ClusterWide, cluster_wide};
pub use result::{Failure, StateResult};
pub use rules::{
    AttachResult, Change, Context, Fencing, Hardness, NetContext, OnNoData, Rule, Verdict,
    evaluate, evaluate_connection,
};
pub use sanitise::sanitise;
pub use word::{ConnState, DiskState, Request, Role, State, WordError};
