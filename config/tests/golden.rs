//! The golden files: every accepted and refused input, seen from every host, must give the recorded result.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tandem_config::{LoadError, Node, dump, load};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/config")
}

fn expectations(directory: &str) -> BTreeMap<PathBuf, Json> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(golden().join(directory)).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().ends_with(".expect.json") {
            let text = std::fs::read_to_string(&path).unwrap();
            out.insert(path, serde_json::from_str(&text).unwrap());
        }
    }
    out
}

fn node_of(expect: &Json) -> Node {
    let host = &expect["this_host"];
    let name = host["name"].as_str().unwrap_or("").to_owned();
    Node {
        name,
        addresses: host["ip"]
            .as_str()
            .map(ToOwned::to_owned)
            .into_iter()
            .collect(),
    }
}

/// The first difference of two values, with its path.
fn difference(path: &str, expected: &Json, got: &Json) -> Option<String> {
    match (expected, got) {
        (Json::Object(e), Json::Object(g)) => {
            let keys: std::collections::BTreeSet<&String> = e.keys().chain(g.keys()).collect();
            keys.into_iter().find_map(|key| {
                let null = &Json::Null;
                let here = format!("{path}.{key}");
                if e.contains_key(key) != g.contains_key(key) {
                    let (e, g) = (e.get(key).unwrap_or(null), g.get(key).unwrap_or(null));
                    return Some(format!("{here}: expected {e}, got {g} (one is absent)"));
                }
                difference(&here, &e[key], &g[key])
            })
        }
        (Json::Array(e), Json::Array(g)) if e.len() == g.len() => e
            .iter()
            .zip(g)
            .enumerate()
            .find_map(|(i, (e, g))| difference(&format!("{path}[{i}]"), e, g)),
        _ if expected == got => None,
        _ => Some(format!("{path}: expected {expected}, got {got}")),
    }
}

fn check_accepted(directory: &str) -> usize {
    let mut failures = Vec::new();
    let all = expectations(directory);
    for (path, expect) in &all {
        let input = path
            .parent()
            .unwrap()
            .join(expect["input"].as_str().unwrap());
        let got = match load(&input) {
            Ok(config) => dump::to_json(&config, &node_of(expect)).unwrap(),
            Err(error) => {
                failures.push(format!("{}: {error}", path.display()));
                continue;
            }
        };
        if let Some(text) = difference("", expect, &got) {
            failures.push(format!("{}: {text}", path.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    all.len()
}

#[test]
fn the_two_seeds_give_the_recorded_model_from_every_host() {
    assert_eq!(check_accepted(""), 6);
}

#[test]
fn accepted_inputs_give_the_recorded_model_from_every_host() {
    assert!(check_accepted("ok") >= 20);
}

#[test]
fn refused_inputs_give_the_recorded_error_and_position() {
    let mut failures = Vec::new();
    let all = expectations("bad");
    for (path, expect) in &all {
        let name = expect["input"].as_str().unwrap();
        let input = path.parent().unwrap().join(name);
        let report = match load(&input) {
            Err(LoadError::Invalid(report)) => report,
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
            Ok(_) => {
                failures.push(format!("{name}: accepted"));
                continue;
            }
        };
        let mut got = dump::report_json(&report);
        let mut expect = expect.clone();
        expect.as_object_mut().unwrap().remove("upstream");
        if name.starts_with("37-secret") {
            // Secrets are not repeated in messages.
            assert_eq!(got["error"]["found"], "64 characters");
            expect["error"].as_object_mut().unwrap().remove("found");
            got["error"].as_object_mut().unwrap().remove("found");
        }
        if let Some(text) = difference("", &expect, &got) {
            failures.push(format!("{name}: {text}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(all.len() >= 38);
}

#[test]
fn every_refusal_renders_with_its_place_and_a_caret() {
    for expect in expectations("bad").keys() {
        let input = expect.to_str().unwrap().replace(".expect.json", "");
        let input = [".conf", ".res"]
            .iter()
            .map(|e| PathBuf::from(format!("{input}{e}")))
            .find(|p| p.exists());
        let Err(LoadError::Invalid(report)) = load(&input.unwrap()) else {
            panic!("accepted")
        };
        let text = report.render(tandem_config::Style::Plain);
        let first = &report.errors[0];
        assert!(text.contains('^'), "{text}");
        assert!(text.contains(first.code.as_str()), "{text}");
        assert!(report.to_string().contains(&report.files.place(first.span)));
        assert!(!text.contains("ssssssss"), "a secret is shown: {text}");
    }
}

#[test]
fn a_dump_reads_back_as_the_same_configuration() {
    for (path, expect) in expectations("ok").into_iter().chain(expectations("")) {
        let input = path
            .parent()
            .unwrap()
            .join(expect["input"].as_str().unwrap());
        let config = load(&input).unwrap();
        let node = node_of(&expect);
        for expansion in [dump::Expansion::AsWritten, dump::Expansion::Expanded] {
            let text = dump::config_text(&config, &node, expansion);
            let again = tandem_config::load_text("dump", text.as_bytes(), path.parent().unwrap())
                .unwrap_or_else(|e| panic!("{}: {e}\n{text}", input.display()));
            let strip = |config: &tandem_config::Config| {
                let mut json = dump::to_json(config, &node).unwrap();
                for resource in json["resources"].as_array_mut().unwrap() {
                    resource["line"] = Json::Null;
                    resource["file"] = Json::Null;
                    resource["sections"]
                        .as_object_mut()
                        .unwrap()
                        .remove("legacy");
                    if expansion == dump::Expansion::Expanded {
                        resource["sections"] = Json::Null;
                        resource.as_object_mut().unwrap().remove("template_file");
                    }
                    for connection in resource["connections"].as_array_mut().unwrap() {
                        connection["source"] = Json::Null;
                    }
                }
                (
                    json["global"].clone(),
                    json["common"].clone(),
                    json["resources"].clone(),
                )
            };
            // A template replaces common; an expanded dump of one has both.
            if expansion == dump::Expansion::Expanded
                && config.resources.iter().any(|r| r.template.is_some())
            {
                continue;
            }
            let (before, after) = (strip(&config), strip(&again));
            for (b, a) in [
                (&before.0, &after.0),
                (&before.1, &after.1),
                (&before.2, &after.2),
            ] {
                assert_eq!(difference("", b, a), None, "{}\n{text}", input.display());
            }
        }
    }
}

#[test]
fn the_seed_is_dumped_as_text_and_xml_in_the_documented_form() {
    let config = load(&golden().join("zimbra-8.4.res")).unwrap();
    let node = Node::named("astapor.got.com");
    let text = dump::resource_text(
        &config,
        &config.resources[0],
        &node,
        dump::Expansion::AsWritten,
    );
    let text = text
        .lines()
        .filter(|l| !l.starts_with("# defined at "))
        .collect::<Vec<_>>()
        .join("\n");
    let expected = r#"# resource optzimbra on astapor.got.com: not ignored, not stacked
resource optzimbra {
    on astapor.got.com {
        device           /dev/drbd0 minor 0;
        disk             /dev/vdb1;
        meta-disk        /dev/vdc1;
        address          ipv4 172.17.18.191:7788;
    }
    on braavos.got.com {
        device           /dev/drbd0 minor 0;
        disk             /dev/vdb1;
        meta-disk        /dev/vdc1;
        address          ipv4 172.17.18.192:7788;
    }
    net {
        protocol         C;
    }
    disk {
        on-io-error      detach;
        resync-rate      10M;
        al-extents       257;
    }
    startup {
        degr-wfc-timeout 120;
    }
    handlers {
        pri-on-incon-degr "halt -f";
    }
}"#;
    assert_eq!(text, expected);
    let xml = tandem_config::xml::config_xml(&config, &["optzimbra"], dump::Expansion::Expanded);
    for line in [
        "<volume vnr=\"0\">",
        "<device minor=\"0\">/dev/drbd0</device>",
        "<meta-disk>/dev/vdc1</meta-disk>",
        "<address family=\"ipv4\" port=\"7788\">172.17.18.191</address>",
        "<option name=\"pri-on-incon-degr\" value=\"halt -f\"/>",
    ] {
        assert!(xml.contains(line), "{line}\n{xml}");
    }
    assert_eq!(
        xml.matches("<host ").count(),
        xml.matches("</host>").count()
    );
}
