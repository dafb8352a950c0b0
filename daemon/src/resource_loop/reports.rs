//! What a loop makes public, and when it wakes by itself.

use std::future::Future;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use tandem_replicator::Time;

use super::{Engine, ResourceLoop};
use crate::control::messages::OutdatedNet;
use crate::report::{ExportFacts, Published, resource_report};

/// Least time between two reports that nobody asked for.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Time between reports while a resync moves.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

impl<E: Engine> ResourceLoop<E> {
    pub(super) fn report_if_due(&mut self) {
        let due = match self.report_due() {
            Some(due) => due <= Instant::now(),
            None => false,
        };
        if due {
            self.publish();
        }
    }

    fn report_due(&self) -> Option<Instant> {
        let interval = match (self.changed, self.moving) {
            (true, _) => REPORT_INTERVAL,
            (false, true) => PROGRESS_INTERVAL,
            (false, false) => return None,
        };
        Some(
            self.published_at
                .map_or_else(Instant::now, |at| at + interval),
        )
    }

    pub(super) fn publish(&mut self) {
        let status = self.engine.status();
        let name = self.definition.name.clone();
        let mut report = resource_report(
            &status,
            &self.definition,
            |volume| self.clients.holders(volume),
            |volume| match self.serving.contains_key(&volume) {
                true => self.surroundings.uris(&name, volume.0),
                false => Vec::new(),
            },
        );
        report.outdated_net = self.connects_by.as_ref().and_then(|by| {
            let connects = report.connection != "StandAlone";
            connects
                .then(|| OutdatedNet::between(by, &self.definition))
                .flatten()
        });
        self.moving = report.volumes.iter().any(|volume| volume.resync.is_some());
        let exports = self.serving.iter().map(|(volume, bytes)| {
            let info = self.disks.info(*volume);
            let facts = ExportFacts {
                bytes: *bytes,
                logical_block: info.map_or(512, |info| info.logical_block),
                discard: info.is_none_or(|info| info.discard),
            };
            (volume.0, facts)
        });
        let published = Published {
            report,
            exports: exports.collect(),
        };
        self.publish.send_if_modified(|last| {
            let changed = **last != published;
            if changed {
                *last = Arc::new(published);
            }
            changed
        });
        self.changed = false;
        self.published_at = Some(Instant::now());
    }

    /// Sets the timer to the next deadline, of the engine or of a report.
    pub(super) fn set_timer(&mut self, context: &mut Context<'_>) {
        let report = self.report_due().map_or(Time::NEVER, |due| {
            self.surroundings.now() + due.saturating_duration_since(Instant::now())
        });
        let farewell = self.clients.next_deadline().map_or(Time::NEVER, |due| {
            self.surroundings.now() + due.saturating_duration_since(Instant::now())
        });
        let wanted = self.engine.next_deadline().min(report).min(farewell);
        // An early wake-up does no harm, and most deadlines move on with every request: the timer is not set again for a later one.
        if wanted < self.timer_at {
            self.timer_at = wanted;
            let ahead = wanted.since(Time(0));
            // Far deadlines are cut.
            let ahead = ahead.min(self.surroundings.epoch.elapsed() + Duration::from_secs(3600));
            let at = self.surroundings.epoch + ahead;
            self.timer.as_mut().reset(at.into());
        }
        if self.timer.as_mut().poll(context).is_ready() {
            self.timer_at = Time(0);
            self.timer
                .as_mut()
                .reset(tokio::time::Instant::now() + Duration::from_secs(3600));
            context.waker().wake_by_ref();
        }
    }
}
