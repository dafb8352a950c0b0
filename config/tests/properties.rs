//! Whatever the bytes are, reading ends with a configuration or with errors that have a place, and never panics;
//! what was accepted is dumped as text that reads back the same.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;

use proptest::prelude::*;
use tandem_config::dump::{Expansion, config_text, report_json, to_json};
use tandem_config::{Config, LoadError, NoFiles, Node, Style, load_text_from, options};

fn parse(text: &[u8]) -> Result<Config, LoadError> {
    load_text_from(&NoFiles, "fuzz", text, Path::new(""))
}

fn nodes() -> [Node; 3] {
    let floating = Node {
        name: "charlie".to_owned(),
        addresses: vec!["192.0.2.1".to_owned()],
    };
    [Node::named("alpha"), Node::named("bravo"), floating]
}

/// Reads, looks at everything, dumps, reads again.
fn survives(text: &[u8]) {
    match parse(text) {
        Ok(config) => {
            for node in nodes() {
                let _ = to_json(&config, &node);
                for view in config.resources_for(&node).unwrap_or_default() {
                    let _ = (view.refusals(), view.advice());
                }
            }
            for warning in &config.warnings {
                let _ = warning.render(&config.files, Style::Plain);
            }
            dumps_are_stable(&config);
        }
        Err(LoadError::Invalid(report)) => {
            assert!(!report.errors.is_empty() && report.errors.len() <= 20);
            let _ = (
                report.render(Style::Coloured),
                report.to_string(),
                report_json(&report),
            );
        }
        Err(error) => panic!("{error}"),
    }
}

fn dumps_are_stable(config: &Config) {
    if config.resources.iter().any(|r| r.template.is_some()) {
        return;
    }
    let node = Node::named("alpha");
    for expansion in [Expansion::AsWritten, Expansion::Expanded] {
        let first = without_comments(&config_text(config, &node, expansion));
        let again = parse(first.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{first}"));
        let second = without_comments(&config_text(&again, &node, expansion));
        assert_eq!(first, second);
    }
}

/// Comments hold line numbers, which move.
fn without_comments(text: &str) -> String {
    text.lines()
        .filter(|l| !l.starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Every word of the language, and some that are none.
fn token() -> impl Strategy<Value = String> {
    let mut words: Vec<String> = [
        "global",
        "common",
        "resource",
        "skip",
        "include",
        "protocol",
        "on",
        "disk",
        "net",
        "syncer",
        "startup",
        "handlers",
        "options",
        "volume",
        "device",
        "meta-disk",
        "flexible-meta-disk",
        "floating",
        "stacked-on-top-of",
        "connection",
        "connection-mesh",
        "proxy",
        "template-file",
        "ignore-on",
        "address",
        "host",
        "hosts",
        "path",
        "port",
        "minor",
        "internal",
        "node-id",
        "plugin",
        "inside",
        "outside",
        "via",
        "incon-degr-cmd",
        "rate",
        "group",
        "after",
        "outdate-peer",
        "no-disk-flushes",
        "yes",
        "no",
        "none",
        "C",
        "detach",
        "panic",
        "alpha",
        "bravo",
        "r0",
        "r1",
        "0",
        "1",
        "2",
        "7788",
        "65536",
        "10M",
        "99999999999999999999",
        "/dev/drbd0",
        "/dev/drbd1",
        "/dev/sdb1",
        "192.0.2.1",
        "192.0.2.2",
        "ipv4",
        "ipv6",
        "fd00::1",
        "\"\"",
        "\"a b\"",
        "\"\\\"\\\\\"",
        "\"",
        "=",
        "é",
        "# comment\n",
        "\n",
    ]
    .iter()
    .map(|w| (*w).to_owned())
    .collect();
    words.extend(options::OPTIONS.iter().map(|o| o.name.to_owned()));
    prop_oneof![
        3 => prop::sample::select(words),
        4 => prop::sample::select(vec!["{", "}", ";", ";", "[", "]", ":"]).prop_map(ToOwned::to_owned),
    ]
}

fn value_of(spec: &'static options::OptionSpec) -> BoxedStrategy<String> {
    use options::Kind;
    match spec.kind {
        // In dialect 0.7 a plain size counts twice as much.
        Kind::Number { max, .. } if spec.name == "size" => {
            (0..=max / 2).prop_map(|n| n.to_string()).boxed()
        }
        Kind::Number { min, max, .. } => (min..=max).prop_map(|n| n.to_string()).boxed(),
        Kind::Clamped { .. } => (0u64..100_000).prop_map(|n| n.to_string()).boxed(),
        Kind::Switch | Kind::Flag => prop::sample::select(vec!["", "yes", "no"])
            .prop_map(ToOwned::to_owned)
            .boxed(),
        Kind::Choice(words) | Kind::AfterSplitBrain0(words) => prop::sample::select(words)
            .prop_map(ToOwned::to_owned)
            .boxed(),
        Kind::Protocol => "[abcABC]".boxed(),
        Kind::Votes => prop::sample::select(vec!["off", "all", "majority", "3"])
            .prop_map(ToOwned::to_owned)
            .boxed(),
        Kind::Text { max } => {
            let max = max.min(40);
            prop::collection::vec(any::<char>(), 0..max)
                .prop_map(|chars| {
                    let text: String = chars.into_iter().filter(|c| *c != '\n').collect();
                    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
                })
                .boxed()
        }
        Kind::Names => prop::sample::select(vec!["both", "alpha", "alpha bravo"])
            .prop_map(ToOwned::to_owned)
            .boxed(),
    }
}

/// A resource with any options at any level.
fn configuration() -> impl Strategy<Value = String> {
    let specs: Vec<&'static options::OptionSpec> = options::OPTIONS
        .iter()
        .filter(|o| {
            !matches!(
                o.section,
                options::Section::Global | options::Section::Syncer
            )
        })
        .filter(|o| o.load_warning != options::LoadWarning::Refused)
        .collect();
    let written = prop::sample::select(specs).prop_flat_map(|spec| (Just(spec), value_of(spec)));
    let list = prop::collection::vec(written, 0..12);
    (list.clone(), list, any::<bool>(), 0u32..1000).prop_map(|(common, own, numbered, minor)| {
        let sections = |options: &[(&options::OptionSpec, String)]| {
            let mut out = String::new();
            for keyword in ["net", "disk", "startup", "options", "handlers", "proxy"] {
                let mine: Vec<String> = options
                    .iter()
                    .filter(|(spec, _)| spec.section.keyword() == keyword)
                    .map(|(spec, value)| format!("{} {value};", spec.name))
                    .collect();
                if !mine.is_empty() {
                    out.push_str(&format!("{keyword} {{ {} }}\n", mine.join(" ")));
                }
            }
            out
        };
        let volume = format!("device minor {minor}; disk /dev/sdb1; meta-disk internal;");
        let volume = if numbered {
            format!("volume 3 {{ {volume} }}")
        } else {
            volume
        };
        format!(
            "common {{ {} }} resource r0 {{ {} on alpha {{ {volume} address 192.0.2.1:1; }} \
             on bravo {{ {volume} address ipv6 [fd00::2]:2; }} }}",
            sections(&common),
            sections(&own)
        )
    })
}

fn golden_texts() -> Vec<Vec<u8>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/config");
    let mut out = Vec::new();
    for directory in ["", "ok", "bad"] {
        for entry in std::fs::read_dir(golden.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "conf" || e == "res") {
                out.push(std::fs::read(path).unwrap());
            }
        }
    }
    out.sort();
    out
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        survives(&bytes);
    }

    #[test]
    fn random_token_soups_never_panic(tokens in prop::collection::vec(token(), 0..80)) {
        survives(tokens.join(" ").as_bytes());
        survives(format!("resource r0 {{ {} }}", tokens.join(" ")).as_bytes());
    }

    #[test]
    fn damaged_golden_files_never_panic(
        text in prop::sample::select(golden_texts()),
        cut in any::<prop::sample::Index>(),
        len in 0usize..40,
        put in prop::collection::vec(token(), 0..3),
    ) {
        let at = cut.index(text.len() + 1);
        let end = (at + len).min(text.len());
        let damaged = [&text[..at], put.join(" ").as_bytes(), &text[end..]].concat();
        survives(&damaged);
        survives(&text[..at]);
    }

    #[test]
    fn any_options_at_any_level_are_accepted_and_dumped_stably(text in configuration()) {
        let config = parse(text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}"));
        dumps_are_stable(&config);
        let view = config.resource_for("r0", &Node::named("alpha")).unwrap();
        let again = parse(config_text(&config, &Node::named("alpha"), Expansion::Expanded).as_bytes()).unwrap();
        let second = again.resource_for("r0", &Node::named("alpha")).unwrap();
        prop_assert_eq!(&view.peers[0].net, &second.peers[0].net);
        prop_assert_eq!(&view.volumes[0].disk_options, &second.volumes[0].disk_options);
        prop_assert_eq!(&view.startup, &second.startup);
        prop_assert_eq!(&view.handlers, &second.handlers);
    }
}
