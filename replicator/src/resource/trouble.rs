//! Why there is no connection, in words for the status.
//!
//! Two things are kept apart: what a person has to mend (another secret, another protocol, a split brain), and what an
//! attempt came to that did not even get as far ("connection refused"). The second never hides the first: both nodes
//! would say no more than that the other one does not answer.

use alloc::format;
use alloc::string::String;

/// How much a failure tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Telling {
    /// The peer cannot be reached, or a socket broke: the next attempt may do better.
    Passing,
    /// Something that a person has to know; kept until the nodes are connected.
    Reason,
}

/// Why there is no connection.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// What a person has to know.
    reason: Option<String>,
    /// A person typed `connect` after it.
    acted: bool,
    /// What the last attempt came to that told less.
    passing: Option<String>,
    /// The last attempt got as far as `reason`.
    reached: bool,
}

impl Trouble {
    /// Keeps a failure. False: the one before of its kind was the same, so that it need not be told again.
    pub(crate) fn note(&mut self, telling: Telling, text: &str) -> bool {
        let reason = telling == Telling::Reason;
        let known = if reason && !self.acted {
            &self.reason
        } else if reason {
            &None
        } else {
            &self.passing
        };
        let new = known.as_deref() != Some(text);
        self.reached = reason;
        let place = if reason {
            self.acted = false;
            &mut self.reason
        } else {
            &mut self.passing
        };
        *place = Some(String::from(text));
        new
    }

    /// A person tries again: what was refused before may be mended now.
    pub(crate) fn acted(&mut self) {
        self.passing = None;
        self.reached = false;
        self.acted = true;
    }

    /// Nothing is tried any more: what an attempt came to is of no interest.
    pub(crate) fn stopped(&mut self) {
        self.passing = None;
    }

    /// The nodes are connected. True: there was something to forget.
    pub(crate) fn over(&mut self) -> bool {
        let was = self.text().is_some();
        *self = Trouble::default();
        was
    }

    /// Everything, for the status.
    pub(crate) fn text(&self) -> Option<String> {
        let passing = self.passing.as_deref().filter(|_| !self.reached);
        match (self.reason.as_deref(), passing) {
            (None, passing) => passing.map(String::from),
            (Some(reason), None) if !self.acted => Some(String::from(reason)),
            (Some(reason), None) => Some(format!(
                "waits for the peer; the last connection ended so: {reason}"
            )),
            (Some(reason), Some(passing)) => {
                Some(format!("{passing}; the last connection ended so: {reason}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_outlives_attempts_that_tell_less_until_the_nodes_are_connected() {
        let mut trouble = Trouble::default();
        assert!(trouble.note(Telling::Passing, "connection refused"));
        assert!(trouble.note(Telling::Reason, "wrong secret"));
        assert_eq!(trouble.text().as_deref(), Some("wrong secret"));
        assert!(!trouble.note(Telling::Passing, "connection refused"));
        let both = "connection refused; the last connection ended so: wrong secret";
        assert_eq!(trouble.text().as_deref(), Some(both));
        assert!(!trouble.note(Telling::Reason, "wrong secret"));
        assert_eq!(trouble.text().as_deref(), Some("wrong secret"));
        assert!(trouble.over());
        assert!(!trouble.over() && trouble.text().is_none());
    }

    #[test]
    fn after_a_new_try_the_old_reason_is_told_as_old_and_a_new_one_as_new() {
        let mut trouble = Trouble::default();
        trouble.note(Telling::Reason, "wrong secret");
        trouble.acted();
        let old = "waits for the peer; the last connection ended so: wrong secret";
        assert_eq!(trouble.text().as_deref(), Some(old));
        trouble.note(Telling::Passing, "no route; trying on");
        assert!(
            trouble
                .text()
                .is_some_and(|text| text.starts_with("no route"))
        );
        trouble.stopped();
        assert!(
            trouble.note(Telling::Reason, "wrong secret"),
            "it is told again"
        );
        assert_eq!(trouble.text().as_deref(), Some("wrong secret"));
    }
}
