//! The configuration.

use std::path::Path;
use tandem_config::dump::{Expansion, config_text, report_json, to_json};
use tandem_config::{LoadError, NoFiles, Node, Style, load_text_from};

/// drbd.conf: any bytes give a configuration or errors with places, and what was accepted is dumped as text that
/// reads back the same.
pub fn config(input: &[u8]) {
    let node = Node::named("alpha");
    let read = |text: &[u8]| load_text_from(&NoFiles, "fuzz", text, Path::new(""));
    match read(input) {
        Ok(config) => {
            let _ = to_json(&config, &node);
            for view in config.resources_for(&node).unwrap_or_default() {
                let _ = (view.refusals(), view.advice());
            }
            let text = config_text(&config, &node, Expansion::AsWritten);
            let Ok(again) = read(text.as_bytes()) else {
                panic!("a dump was refused:\n{text}");
            };
            let strip = |text: &str| -> Vec<String> {
                text.lines()
                    .filter(|l| !l.starts_with('#'))
                    .map(ToOwned::to_owned)
                    .collect()
            };
            assert_eq!(
                strip(&text),
                strip(&config_text(&again, &node, Expansion::AsWritten))
            );
        }
        Err(LoadError::Invalid(report)) => {
            assert!(!report.errors.is_empty());
            let _ = (
                report.render(Style::Plain),
                report.to_string(),
                report_json(&report),
            );
        }
        Err(error) => panic!("{error}"),
    }
}
