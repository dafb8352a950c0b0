//! Every command that the engine knows, by name, with what changes its meaning: a history notes which of them were typed.

use tandem_replicator::{Command, Force, NewArea, PeerRoom};

macro_rules! forms {
    ($($name:literal = $form:pat,)+) => {
        /// All of them: a new command of the engine does not compile before it is here.
        pub const FORMS: &[&str] = &[$($name),+];

        /// Which of them this is.
        #[must_use]
        pub const fn form(command: &Command) -> &'static str {
            match command {
                $($form => $name,)+
            }
        }
    };
}

forms! {
    "attach" = Command::Attach { .. },
    "detach" = Command::Detach { force: Force::No, .. },
    "detach --force" = Command::Detach { force: Force::Yes, .. },
    "connect --discard-my-data" = Command::Connect { discard_my_data: true, .. },
    "connect --tentative" = Command::Connect { tentative: true, .. },
    "connect" = Command::Connect { .. },
    "disconnect" = Command::Disconnect { force: Force::No },
    "disconnect --force" = Command::Disconnect { force: Force::Yes },
    "primary" = Command::Primary { force: Force::No, .. },
    "primary --force" = Command::Primary { force: Force::Yes, .. },
    "secondary" = Command::Secondary { .. },
    "invalidate" = Command::Invalidate { .. },
    "invalidate-remote" = Command::InvalidateRemote { .. },
    "outdate" = Command::Outdate { .. },
    "new-current-uuid --clear-bitmap" = Command::NewCurrentUuid { clear_bitmap: true, .. },
    "new-current-uuid" = Command::NewCurrentUuid { clear_bitmap: false, .. },
    "pause-sync" = Command::PauseSync { .. },
    "resume-sync" = Command::ResumeSync { .. },
    "verify" = Command::Verify { start: None, stop: None, .. },
    "verify --start --stop" = Command::Verify { .. },
    "verify, stopped" = Command::VerifyStop { .. },
    "suspend-io" = Command::SuspendIo { .. },
    "resume-io" = Command::ResumeIo { .. },
    "disk-options" = Command::DiskOptions { .. },
    "down" = Command::Down { force: Force::No },
    "down --force" = Command::Down { force: Force::Yes },
    "resize --assume-peer-has-space" = Command::Resize { room: PeerRoom::Assumed, .. },
    "resize --assume-clean" = Command::Resize { area: NewArea::AssumeClean, .. },
    "resize" = Command::Resize { .. },
}
