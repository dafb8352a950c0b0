//! Why a measurement could not be made.

use std::io;

/// Why something of a comparison failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A system call failed.
    #[error("{doing}: {error}")]
    System {
        /// What was being done, and to what.
        doing: String,
        /// The system's answer.
        error: io::Error,
    },
    /// A program from outside is not there.
    #[error("{program} is not installed; next: apt-get install --no-install-recommends {package}")]
    Missing {
        /// The program.
        program: String,
        /// Its Debian package.
        package: String,
    },
    /// A server or a tool said something else than was expected.
    #[error("{0}")]
    Unexpected(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    /// A failed system call in words.
    pub fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
        let doing = doing.into();
        move |error| Failure::System { doing, error }
    }
}
