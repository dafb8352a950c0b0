//! `tandem black-box`: the last events and effects of a resource become a file that the simulator replays.

use std::path::{Path, PathBuf};

use tandem_daemon::control::messages::Call;

use crate::daemon;
use crate::failure::{CANNOT_RUN, Failure, Outcome};
use crate::invocation::Invocation;
use crate::output::out_line;

/// Asks the daemon to write the box of `resource` to `file`, or where it writes those of failures.
pub(crate) fn run(invocation: &Invocation, resource: &str, file: Option<&Path>) -> Outcome {
    // The daemon has another working directory.
    let file: Option<PathBuf> = file.map(std::path::absolute).transpose().map_err(|error| {
        Failure::new(
            CANNOT_RUN,
            format!("cannot find the working directory: {error}"),
        )
    })?;
    let call = Call::BlackBox {
        resource: resource.to_owned(),
        file,
    };
    let answer = daemon::connect(invocation)?
        .command(call, None)
        .map_err(|error| daemon::failed(invocation, &error))?;
    if answer.is_success() {
        for line in &answer.info {
            out_line(line);
        }
        return Ok(());
    }
    let mut failure = Failure::new(answer.exit, format!("{resource}: {}", answer.text));
    for line in answer.info {
        failure = failure.line(line);
    }
    Err(match answer.hint {
        Some(hint) => failure.next(hint),
        None => failure.next(invocation.tandem("status")),
    })
}
