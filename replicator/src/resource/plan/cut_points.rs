//! Which durable sequence an I/O belongs to: for tests that must have cut all of them.

use super::{Lane, Then};
use crate::event::Token;
use crate::resource::{Pending, Resource, attach, commands, link, resync};

macro_rules! ends {
    ($($(#[doc = $doc:literal])+ $name:ident = $then:pat,)+) => {
        /// What follows a durable sequence: one for each of the engine's own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum PlanEnd {
            $($(#[doc = $doc])+ $name,)+
        }

        impl PlanEnd {
            /// All of them: a new one of the engine does not compile before it is here.
            pub const ALL: &[PlanEnd] = &[$(PlanEnd::$name),+];

            const fn of(then: Then) -> PlanEnd {
                match then {
                    $($then => PlanEnd::$name,)+
                }
            }
        }
    };
}

ends! {
    /// Nothing.
    Nothing = Then::Nothing,
    /// Clients get to know a new size, and whoever asked for it is answered.
    Sized = Then::Sized,
    /// Writes that wait for the activity log.
    LogWritten = Then::LogWritten,
    /// Answers that wait for a new data generation.
    Generation = Then::Generation,
    /// A handler.
    Handler = Then::Handler,
    /// An attach changes the state.
    AttachWritten = Then::Attach(attach::AfterPlan::Written),
    /// The end of an attach.
    AttachFinished = Then::Attach(attach::AfterPlan::Finished),
    /// A disk is closed.
    Detach = Then::Detach,
    /// The answer to a command.
    CommandAnswer = Then::Command(commands::AfterPlan::Answer(_)),
    /// The answer to a promotion.
    CommandPromoted = Then::Command(commands::AfterPlan::Promoted(_)),
    /// The answer to a command that rewrote the bitmap.
    CommandBitmapWritten = Then::Command(commands::AfterPlan::BitmapWritten(_)),
    /// The answer to a command that changed options of the disk.
    CommandOptionsWritten = Then::Command(commands::AfterPlan::OptionsWritten(_)),
    /// A full sync, all bits of which are set.
    ResyncAllBitsSet = Then::Resync(resync::AfterPlan::AllBitsSet),
    /// The start of a resync on its source.
    ResyncSyncUuid = Then::Resync(resync::AfterPlan::SyncUuid(_)),
    /// The start of a resync on its target.
    ResyncTargetReady = Then::Resync(resync::AfterPlan::TargetReady(_)),
    /// The target's last ping, before the end.
    ResyncFlushed = Then::Resync(resync::AfterPlan::Flushed(_)),
    /// The end of a resync on its target.
    ResyncTargetFinished = Then::Resync(resync::AfterPlan::TargetFinished(_)),
    /// A handshake that decided on a full sync.
    LinkFullSync = Then::Link(link::AfterPlan::FullSync),
}

impl Resource {
    /// What follows the durable sequence that this I/O, which has not ended, is a part of. `None`: it is no part of any.
    #[must_use]
    pub fn plan_end_of(&self, token: Token) -> Option<PlanEnd> {
        let Some(Pending::Plan(number, io)) = self.pending.get(&token) else {
            return None;
        };
        let plans = &self.volumes.get(number)?.plans;
        let queue = match io.lane {
            Lane::Main => &plans.main,
            Lane::Log => &plans.log,
        };
        let running = queue.running.as_ref()?;
        Some(PlanEnd::of(running.plan.then))
    }
}
