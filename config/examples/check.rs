//! Reads a configuration and prints its diagnostics, or its dump.
use std::path::Path;
use std::process::ExitCode;

use tandem_config::{LoadError, Node, Style, dump, load};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), node) = (arguments.next(), arguments.next().unwrap_or_default()) else {
        eprintln!("usage: check FILE [NODE]");
        return ExitCode::from(1);
    };
    match load(Path::new(&path)) {
        Ok(config) => {
            for warning in &config.warnings {
                eprintln!("{}", warning.render(&config.files, Style::Plain));
            }
            print!(
                "{}",
                dump::config_text(&config, &Node::named(node), dump::Expansion::AsWritten)
            );
            ExitCode::SUCCESS
        }
        Err(LoadError::Invalid(report)) => {
            eprintln!("{}", report.render(Style::Plain));
            ExitCode::from(10)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(20)
        }
    }
}
