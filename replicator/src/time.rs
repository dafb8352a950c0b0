//! The engine's clock: a point in time that the caller passes in.

use core::ops::{Add, Sub};
use core::time::Duration;

/// A point in time in nanoseconds on the caller's monotonic clock. Zero is arbitrary.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::Decode,
)]
pub struct Time(pub u64);

impl Time {
    /// Later than every deadline.
    pub const NEVER: Time = Time(u64::MAX);

    /// Time that has passed since `earlier`; zero when `earlier` is later than this.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    /// Saturates at [`Time::NEVER`].
    fn add(self, length: Duration) -> Time {
        let nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(nanos))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;
    /// Saturates at zero.
    fn sub(self, length: Duration) -> Time {
        let nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        Time(self.0.saturating_sub(nanos))
    }
}
