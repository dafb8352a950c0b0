//! Rules of the language that the golden files do not show, typed options, and what is refused by name.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;
use std::time::Duration;

use tandem_config::{
    AfterSb0Pri, Code, Config, LoadError, NoFiles, Node, Protocol, Report, ResolveError, Section,
    Support, load, load_text_from,
};

const HOSTS: &str = "
  on alpha { device /dev/drbd0; disk /dev/sdb1; address 192.0.2.1:7788; meta-disk internal; }
  on bravo { device /dev/drbd0; disk /dev/sdb1; address 192.0.2.2:7788; meta-disk internal; }
";

fn accept(text: &str) -> Config {
    load_text_from(&NoFiles, "t", text.as_bytes(), Path::new(""))
        .unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn refuse(text: &str) -> Report {
    match load_text_from(&NoFiles, "t", text.as_bytes(), Path::new("")) {
        Err(LoadError::Invalid(report)) => *report,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("accepted: {text}"),
    }
}

fn first(text: &str) -> (Code, String, String) {
    let report = refuse(text);
    let error = &report.errors[0];
    (
        error.code,
        error.found.clone(),
        error.hint.clone().unwrap_or_default(),
    )
}

fn resource(body: &str) -> String {
    format!("resource r0 {{ {body} {HOSTS} }}")
}

fn warnings(config: &Config) -> Vec<Code> {
    config.warnings.iter().map(|w| w.code).collect()
}

#[test]
fn an_unknown_option_is_an_error_that_names_its_neighbour_or_its_home() {
    let (code, found, hint) = first(&resource("net { shraed-secret x; }"));
    assert_eq!(
        (code, found.as_str()),
        (Code::UnknownOption, "shraed-secret")
    );
    assert!(hint.contains("shared-secret"));
    let (_, _, hint) = first(&resource("net { on-io-error detach; }"));
    assert!(hint.contains("disk { on-io-error"), "{hint}");
}

#[test]
fn every_error_of_a_file_is_found_but_at_most_twenty() {
    let report = refuse(&resource(
        "net { tiemout 1; ping-int x; } disk { resync-rate; }",
    ));
    let codes: Vec<Code> = report.errors.iter().map(|e| e.code).collect();
    assert_eq!(
        codes,
        [Code::UnknownOption, Code::BadNumber, Code::UnexpectedToken]
    );
    let many = "tiemout 1; ".repeat(50);
    assert_eq!(
        refuse(&resource(&format!("net {{ {many} }}"))).errors.len(),
        20
    );
}

#[test]
fn bare_statements_and_volume_sections_do_not_mix() {
    let (code, ..) = first(&resource(
        "volume 1 { device minor 1; disk /dev/sdc; meta-disk internal; }",
    ));
    assert_eq!(code, Code::VolumeMix);
}

#[test]
fn statements_in_the_wrong_place_are_refused() {
    assert_eq!(first("common { on alpha { } }").0, Code::Place);
    assert_eq!(first(&resource("include x;")).0, Code::Place);
    assert_eq!(
        first("resource r0 { volume 0 { disk { fencing resource-only; } } }").0,
        Code::Place
    );
}

#[test]
fn a_resource_inside_a_resource_hints_at_the_missing_brace() {
    let (code, _, hint) = first("resource a { protocol C; resource b { } }");
    assert_eq!(code, Code::UnexpectedToken);
    assert!(hint.contains("} is missing"), "{hint}");
}

#[test]
fn device_names_must_agree_with_their_minor() {
    let device = |text: &str| {
        let hosts = HOSTS.replacen("/dev/drbd0", text, 1);
        format!("resource r0 {{ {hosts} }}")
    };
    assert_eq!(first(&device("/dev/drbd1 minor 2")).0, Code::Device);
    assert_eq!(first(&device("/dev/drbd_data")).0, Code::Device);
    assert_eq!(first(&device("minor 1048576")).0, Code::Range);
    assert_eq!(
        first(&device("/dev/drbd99999999999999999999")).0,
        Code::Range
    );
    let config = accept(&device("/dev/drbd_data minor 5"));
    assert_eq!(config.resources[0].hosts[0].volumes[0].device.minor, 5);
    let config = accept(&device("drbd007"));
    assert_eq!(
        config.resources[0].hosts[0].volumes[0].device.path,
        "/dev/drbd7"
    );
}

#[test]
fn addresses_are_checked_for_their_form() {
    let address = |text: &str| {
        format!(
            "resource r0 {{ {} }}",
            HOSTS.replacen("192.0.2.1:7788", text, 1)
        )
    };
    assert_eq!(first(&address("192.0.2.300:7788")).0, Code::Address);
    assert_eq!(first(&address("ipv6 [fd00::1::2]:7788")).0, Code::Address);
    assert_eq!(first(&address("ipv6 [fe80::1%]:7788")).0, Code::Address);
    assert_eq!(first(&address("192.0.2.1:0")).0, Code::Range);
    assert_eq!(first(&address("192.0.2.1")).0, Code::UnexpectedToken);
    let config = accept(&address("ipv6 [ fe80::1%3 ] : 7788"));
    let local = config.resources[0].hosts[0].address.clone().unwrap();
    assert_eq!(local.socket_addr().unwrap().to_string(), "[fe80::1%3]:7788");
}

#[test]
fn two_hosts_of_a_resource_may_not_share_an_address_except_loopback() {
    let same = HOSTS.replace("192.0.2.2", "192.0.2.1");
    assert_eq!(
        first(&format!("resource r0 {{ {same} }}")).0,
        Code::Duplicate
    );
    let looped = same.replace("192.0.2.1", "127.0.0.1");
    accept(&format!("resource r0 {{ {looped} }}"));
}

#[test]
fn diskless_hosts_are_known_from_dialect_nine_on() {
    let none = HOSTS.replacen("disk /dev/sdb1", "disk none", 1);
    assert_eq!(first(&format!("resource r0 {{ {none} }}")).0, Code::Missing);
    let ids = none.replacen("alpha {", "alpha { node-id 0;", 1).replacen(
        "bravo {",
        "bravo { node-id 1;",
        1,
    );
    let config = accept(&format!("resource r0 {{ {ids} }}"));
    assert_eq!(config.resources[0].hosts[0].volumes[0].disk, None);
}

#[test]
fn node_ids_are_given_to_all_hosts_or_to_none() {
    let one = HOSTS.replacen("alpha {", "alpha { node-id 0;", 1);
    let report = refuse(&format!("resource r0 {{ {one} }}"));
    assert_eq!(
        (report.errors[0].code, report.errors[0].expected[0].as_str()),
        (Code::Missing, "node-id")
    );
}

#[test]
fn connections_give_addresses_and_options_to_a_pair() {
    let text = "resource r0 {
      device minor 0; disk /dev/sdb1; meta-disk internal;
      on alpha { node-id 0; } on bravo { node-id 1; }
      connection named {
        host alpha address 192.0.2.1:7788; host bravo address ipv6 [fd00::2]:7789;
        net { timeout 40; } disk { resync-rate 5M; } volume 0 { disk { c-min-rate 7; } }
      }
    }";
    let config = accept(text);
    assert_eq!(warnings(&config), [Code::ConnectionName]);
    let view = config.resource_for("r0", &Node::named("bravo")).unwrap();
    assert_eq!(
        view.peers[0].paths[0].local.to_string(),
        "ipv6:[fd00::2]:7789"
    );
    assert_eq!(view.peers[0].net.timeout, Duration::from_secs(4));
    assert_eq!(view.volumes[0].disk_options.resync_rate_kib, 5120);
    assert_eq!(view.volumes[0].disk_options.c_min_rate_kib, 7);
    let twice = text.replace(
        "connection named",
        "connection-mesh { hosts alpha bravo; } connection",
    );
    assert_eq!(first(&twice).0, Code::Missing);
    assert_eq!(
        first(&text.replace("host bravo address", "host bravi address")).0,
        Code::Ref
    );
    let lonely = text.replace("host bravo address ipv6 [fd00::2]:7789;", "");
    assert_eq!(first(&lonely).0, Code::Connections);
}

#[test]
fn resync_after_unknown_resources_warns_and_loops_are_refused() {
    let other = HOSTS
        .replace("drbd0", "drbd1")
        .replace("sdb1", "sdb2")
        .replace("7788", "7789");
    let two = |a: &str, b: &str| {
        format!(
            "resource a {{ disk {{ resync-after {a}; }} {HOSTS} }} resource b {{ disk {{ resync-after {b}; }} {other} }}"
        )
    };
    assert_eq!(warnings(&accept(&two("b", "nothing"))), [Code::ResyncAfter]);
    assert_eq!(first(&two("b", "a/0")).0, Code::Ref);
    assert_eq!(first(&two("a", "nothing")).0, Code::Ref);
}

#[test]
fn one_lower_disk_under_two_devices_warns() {
    let other = HOSTS.replace("drbd0", "drbd1").replace("7788", "7789");
    let config = accept(&format!(
        "resource a {{ {HOSTS} }} resource b {{ {other} }}"
    ));
    assert_eq!(warnings(&config), [Code::SharedDisk, Code::SharedDisk]);
}

#[test]
fn an_option_given_twice_counts_the_last_and_warns() {
    let config = accept(&resource(
        "protocol A; net { protocol b; timeout 50; timeout 40; }",
    ));
    assert_eq!(
        warnings(&config),
        [Code::DuplicateOption, Code::DuplicateOption]
    );
    let view = config.resource_for("r0", &Node::named("alpha")).unwrap();
    assert_eq!(view.peers[0].net.protocol, Protocol::B);
    assert_eq!(view.peers[0].net.timeout, Duration::from_secs(4));
}

#[test]
fn what_must_not_be_ignored_is_refused_when_read() {
    for body in [
        "net { tls yes; }",
        "disk { disk-size 5; }",
        "syncer { skip-sync; }",
    ] {
        assert_eq!(first(&resource(body)).0, Code::Unsupported, "{body}");
    }
    accept(&resource("net { tls no; }"));
}

#[test]
fn switches_know_the_negative_form_and_nothing_but_yes_and_no() {
    let config = accept(&resource(
        "disk { no-disk-flushes; md-flushes no; } net { always-asbp; }",
    ));
    let view = config.resource_for("r0", &Node::named("alpha")).unwrap();
    let disk = &view.volumes[0].disk_options;
    assert!(
        !disk.disk_flushes && !disk.md_flushes && disk.disk_drain && view.peers[0].net.always_asbp
    );
    assert_eq!(
        first(&resource("disk { no-al-extents; }")).0,
        Code::UnknownOption
    );
    assert_eq!(first(&resource("disk { disk-flushes on; }")).0, Code::Bool);
}

#[test]
fn unset_options_have_the_defaults_of_the_table() {
    let config = accept(&resource(""));
    let view = config.resource_for("r0", &Node::named("alpha")).unwrap();
    let (net, disk) = (&view.peers[0].net, &view.volumes[0].disk_options);
    assert_eq!(net.protocol, Protocol::C);
    assert_eq!(net.timeout, Duration::from_secs(6));
    assert_eq!(net.ping_timeout, Duration::from_millis(500));
    assert_eq!(net.socket_check_timeout, net.ping_timeout);
    assert_eq!(
        (
            net.ko_count,
            net.max_buffers,
            net.max_epoch_size,
            net.sndbuf_size
        ),
        (7, 2048, 2048, None)
    );
    assert!(net.use_rle && net.tcp_cork && net.cram_hmac_alg.is_none());
    assert_eq!(
        (
            disk.al_extents,
            disk.resync_rate_kib,
            disk.c_fill_target_sectors
        ),
        (1237, 250, 100)
    );
    assert_eq!(disk.c_plan_ahead, Some(Duration::from_secs(2)));
    assert_eq!((disk.size_sectors, disk.disk_timeout), (None, None));
    assert_eq!(view.startup.wfc_timeout, None);
    assert_eq!(
        config.global_options().cmd_timeout_medium,
        Duration::from_secs(121)
    );
    assert!(
        view.support_issues().is_empty() && view.refusals().is_empty() && view.advice().is_empty()
    );
}

#[test]
fn startup_waits_are_cut_to_the_one_above() {
    let text =
        resource("startup { wfc-timeout 30; degr-wfc-timeout 60; outdated-wfc-timeout 90; }");
    let view = accept(&text)
        .resource_for("r0", &Node::named("alpha"))
        .unwrap();
    assert_eq!(view.startup.degr_wfc_timeout, Some(Duration::from_secs(30)));
    assert_eq!(
        view.startup.outdated_wfc_timeout,
        Some(Duration::from_secs(30))
    );
}

#[test]
fn values_that_cannot_be_honoured_are_named_with_their_reason() {
    let body = "net { allow-two-primaries; cram-hmac-alg sha512; shared-secret x; data-integrity-alg crc32c;
                      verify-alg md5; on-congestion pull-ahead; after-sb-0pri discard-node-bravo; }
                disk { fencing resource-only; disk-timeout 30; disk-barrier yes; }
                options { quorum majority; on-no-data-accessible suspend-io; }";
    let view = accept(&resource(body))
        .resource_for("r0", &Node::named("alpha"))
        .unwrap();
    let issues = view.support_issues();
    let names = |refused: bool| {
        let mut names: Vec<_> = issues
            .iter()
            .filter(|i| i.is_refusal() == refused)
            .map(|i| i.option)
            .collect();
        names.sort_unstable();
        names
    };
    let refused = [
        "allow-two-primaries",
        "cram-hmac-alg",
        "fencing",
        "on-congestion",
        "on-no-data-accessible",
        "quorum",
    ];
    assert_eq!(names(true), refused);
    assert_eq!(names(false), ["disk-barrier", "disk-timeout"]);
    assert_eq!(view.refusals().len(), refused.len());
    assert!(
        view.refusals()
            .iter()
            .all(|text| text.contains("is refused: "))
    );
    assert_eq!(view.peers[0].net.after_sb_0pri, AfterSb0Pri::DiscardRemote);
    let fencing = issues.iter().find(|i| i.option == "fencing").unwrap();
    assert_eq!(fencing.section, Section::Net);
    assert!(matches!(fencing.support, Support::Refused(_)));
}

#[test]
fn stacked_resources_and_several_peers_are_refused_by_name() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/config/ok");
    let stacked = load(&golden.join("06-stacked.conf")).unwrap();
    let view = stacked
        .resource_for("upper", &Node::named("bravo"))
        .unwrap();
    assert!(view.refusals()[0].contains("stacked-on-top-of lower"));
    assert!(
        stacked
            .resource_for("upper", &Node::named("charlie"))
            .unwrap()
            .refusals()
            .is_empty()
    );
    let mesh = load(&golden.join("09-mesh-v9.conf")).unwrap();
    let refusals = mesh
        .resource_for("three", &Node::named("alpha"))
        .unwrap()
        .refusals();
    assert!(refusals[0].contains("2 peers"), "{refusals:?}");
}

#[test]
fn cross_checks_give_advice() {
    let body =
        "startup { become-primary-on both; } net { timeout 100; connect-int 10; shared-secret x; }";
    let view = accept(&resource(body))
        .resource_for("r0", &Node::named("alpha"))
        .unwrap();
    let advice = view.advice().join("\n");
    for word in [
        "connect-int",
        "ping-int",
        "cram-hmac-alg",
        "allow-two-primaries",
    ] {
        assert!(advice.contains(word), "{word}: {advice}");
    }
}

#[test]
fn groups_of_0_7_become_resources_to_wait_for() {
    let other = HOSTS
        .replace("drbd0", "drbd1")
        .replace("sdb1", "sdb2")
        .replace("7788", "7789");
    let config = accept(&format!(
        "resource a {{ syncer {{ group 0; }} {HOSTS} }} resource b {{ syncer {{ group 3; }} {other} }}"
    ));
    let view = |name| config.resource_for(name, &Node::named("alpha")).unwrap();
    assert_eq!(view("b").volumes[0].disk_options.resync_after, ["a"]);
    assert!(view("a").volumes[0].disk_options.resync_after.is_empty());
}

#[test]
fn a_size_in_kib_that_is_too_big_in_sectors_is_refused() {
    let text = resource("incon-degr-cmd x; disk { size 2199023255551; }");
    assert_eq!(first(&text).0, Code::Range);
    let config = accept(&text.replace("2199023255551", "1000"));
    let view = config.resource_for("r0", &Node::named("alpha")).unwrap();
    assert_eq!(view.volumes[0].disk_options.size_sectors, Some(2000));
}

#[test]
fn a_resource_without_a_section_for_this_node_is_not_here() {
    let config = accept(&resource(""));
    let error = config
        .resource_for("r0", &Node::named("charlie"))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "'r0' not defined in your config (for this host)"
    );
    assert!(
        config
            .resources_for(&Node::named("charlie"))
            .unwrap()
            .is_empty()
    );
    let both = HOSTS
        .replace("on alpha", "on alpha.x")
        .replace("on bravo", "on alpha.y");
    let config = accept(&format!("resource r0 {{ {both} }}"));
    let error = config
        .resource_for("r0", &Node::named("alpha"))
        .unwrap_err();
    assert!(matches!(error, ResolveError::Ambiguous { .. }));
}

#[test]
fn a_configuration_without_resources_is_valid() {
    let config = accept("# nothing\n");
    assert!(config.resources.is_empty());
}

#[test]
fn includes_are_relative_sorted_read_once_and_may_not_be_cyclic() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir_all(at("drbd.d/sub")).unwrap();
    let resource = |name: &str, minor: u32| {
        let hosts = HOSTS
            .replace("drbd0", &format!("drbd{minor}"))
            .replace("sdb1", &format!("sdb{minor}"))
            .replace("7788", &format!("78{minor:02}"));
        format!("resource {name} {{ {hosts} }}\n")
    };
    std::fs::write(
        at("drbd.conf"),
        "include \"drbd.d/*.res\";\ninclude \"drbd.d/a.res\";\n",
    )
    .unwrap();
    std::fs::write(at("drbd.d/b.res"), resource("b", 2)).unwrap();
    let cyclic = resource("a", 1) + "include \"../drbd.conf\"; include \"sub/c.inc\";";
    std::fs::write(at("drbd.d/a.res"), cyclic).unwrap();
    std::fs::write(at("drbd.d/sub/c.inc"), resource("c", 3)).unwrap();
    std::fs::create_dir(at("drbd.d/z.res")).unwrap();
    std::fs::write(at("drbd.d/.hidden.res"), "nonsense").unwrap();
    let config = load(&at("drbd.conf")).unwrap();
    let names: Vec<&str> = config.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["a", "c", "b"]);
    std::fs::write(at("bad.conf"), "include \"drbd.d\";").unwrap();
    let Err(LoadError::Invalid(report)) = load(&at("bad.conf")) else {
        panic!("a directory was accepted")
    };
    assert_eq!(report.errors[0].code, Code::Include);
    assert!(matches!(
        load(&at("absent.conf")),
        Err(LoadError::Unreadable { .. })
    ));
    assert!(matches!(
        load(directory.path()),
        Err(LoadError::Unreadable { .. })
    ));
}

#[test]
fn an_endless_chain_of_includes_ends_with_an_error() {
    let directory = tempfile::tempdir().unwrap();
    for i in 0..100 {
        let text = format!("include \"f{}.conf\";", i + 1);
        std::fs::write(directory.path().join(format!("f{i}.conf")), text).unwrap();
    }
    let Err(LoadError::Invalid(report)) = load(&directory.path().join("f0.conf")) else {
        panic!("accepted")
    };
    assert_eq!(report.errors[0].code, Code::Include);
    assert!(report.to_string().contains("too many includes"));
}

#[test]
fn names_that_look_like_keywords_are_accepted_and_dumped_in_quotes() {
    let config = accept(&format!("resource disk {{ {HOSTS} }}"));
    let text = tandem_config::dump::config_text(
        &config,
        &Node::named("alpha"),
        tandem_config::dump::Expansion::AsWritten,
    );
    assert!(text.contains("resource \"disk\" {"), "{text}");
    assert_eq!(accept(&text).resources[0].name, "disk");
}

#[test]
fn secrets_do_not_appear_in_debug_output() {
    let config = accept(&resource(
        "net { cram-hmac-alg sha1; shared-secret hushhush; }",
    ));
    let view = config.resource_for("r0", &Node::named("alpha")).unwrap();
    assert_eq!(view.peers[0].net.shared_secret.as_deref(), Some("hushhush"));
    assert!(!format!("{view:?}").contains("hushhush"));
    assert!(!format!("{:?}", config.resources).contains("hushhush"));
}
