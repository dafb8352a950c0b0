//! The configuration as text again (`dump`) and as JSON.
//!
//! Source: `docs/spec/config-and-cli.md` sections 3.2 and 5.6. The text is readable by Tandem and by the 8.4 tools;
//! legacy forms are already mapped.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use crate::effective::{Node, ResolvedResource, ResolvedVolume};
use crate::inherit::ResolveError;
use crate::lexer::is_plain_word;
use crate::model::{
    Address, Config, Connection, ConnectionSource, Host, HostKind, MetaDisk, Options, Proxy,
    Resource, Sections, Setting, Value, Volume,
};
use crate::options::{Kind, Section, Unit};
use crate::parser::quote;

/// What `dump` prints of the options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expansion {
    /// As written.
    AsWritten,
    /// Inherited ones too, as with `-d` and `-v`.
    Expanded,
}

/// Words that the upstream tools take for keywords, so that a name must be quoted.
const KEYWORDS: &[&str] = &[
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
];

/// A whole configuration. `node` is only for the comment lines.
#[must_use]
pub fn config_text(config: &Config, node: &Node, expansion: Expansion) -> String {
    let mut out = Writer::default();
    if !config.global.is_empty() {
        out.options("global", &config.global);
        out.line("");
    }
    if let Some(common) = &config.common {
        out.open("common");
        out.sections(common);
        out.close();
        out.line("");
    }
    for resource in &config.resources {
        out.text
            .push_str(&resource_text(config, resource, node, expansion));
        out.line("");
    }
    out.text
}

/// One resource with its comment lines.
#[must_use]
pub fn resource_text(
    config: &Config,
    resource: &Resource,
    node: &Node,
    expansion: Expansion,
) -> String {
    let mut out = Writer::default();
    let ignored = !matches!(config.own_host(resource, node), Ok(Some(_)));
    let not = |is: bool, word: &str| {
        if is {
            word.to_owned()
        } else {
            format!("not {word}")
        }
    };
    let stacked = not(resource.stacked_on.is_some(), "stacked");
    out.line(&format!(
        "# resource {} on {}: {}, {stacked}",
        resource.name,
        node.name,
        not(ignored, "ignored")
    ));
    let at = resource.at;
    out.line(&format!(
        "# defined at {}:{}",
        config.files.name(at.file),
        at.line
    ));
    if let Some(group) = resource.sections.group {
        out.line(&format!("# syncer group {group}"));
    }
    out.open(&format!("resource {}", name_text(&resource.name)));
    if let (Some(template), Expansion::AsWritten) = (&resource.template, expansion) {
        out.statement("template-file", &quote(&template.file));
    }
    for name in &resource.ignore_on {
        out.statement("ignore-on", &name_text(name));
    }
    for host in &resource.hosts {
        out.host(resource, host);
    }
    for connection in resource
        .connections
        .iter()
        .filter(|c| c.source != ConnectionSource::Implicit)
    {
        out.connection(resource, connection);
    }
    let sections = sections_for(config, resource, expansion);
    out.sections(&sections);
    out.close();
    out.text
}

/// The sections of a resource, with the inherited options where they are wanted.
pub(crate) fn sections_for(config: &Config, resource: &Resource, expansion: Expansion) -> Sections {
    let own = &resource.sections;
    let (Some(base), Expansion::Expanded) = (config.base_of(resource), expansion) else {
        return own.clone();
    };
    let mut all = base.clone();
    for section in SECTIONS {
        if let (Some(below), Some(above)) = (all.get_mut(*section), own.get(*section)) {
            below.overlay(above);
        }
    }
    all.group = own.group.or(all.group);
    all.proxy_plugins = own.proxy_plugins.clone().or(all.proxy_plugins);
    all
}

pub(crate) const SECTIONS: &[Section] = &[
    Section::Net,
    Section::Disk,
    Section::Startup,
    Section::Options,
    Section::Handlers,
    Section::Proxy,
];

#[derive(Default)]
struct Writer {
    text: String,
    depth: usize,
}

impl Writer {
    fn line(&mut self, text: &str) {
        if !text.is_empty() {
            self.text.push_str(&"    ".repeat(self.depth));
        }
        self.text.push_str(text);
        self.text.push('\n');
    }

    fn open(&mut self, head: &str) {
        self.line(&format!("{head} {{"));
        self.depth += 1;
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.line("}");
    }

    fn statement(&mut self, name: &str, value: &str) {
        self.line(&format!("{name:<16} {value};"));
    }

    fn setting(&mut self, setting: &Setting) {
        let name = setting.spec.name;
        match (&setting.value, setting.spec.kind) {
            (Value::Switch(true), Kind::Flag) => self.line(&format!("{name};")),
            (Value::Switch(false), Kind::Flag) => self.line(&format!("{name:<16} no;")),
            _ => self.statement(name, &setting_text(setting)),
        }
    }

    fn options(&mut self, head: &str, options: &Options) {
        if options.is_empty() {
            return;
        }
        self.open(head);
        for setting in options {
            self.setting(setting);
        }
        self.close();
    }

    fn sections(&mut self, sections: &Sections) {
        for section in SECTIONS {
            let Some(options) = sections.get(*section) else {
                continue;
            };
            if *section == Section::Proxy && sections.proxy_plugins.is_some() {
                self.proxy_section(
                    options,
                    sections.proxy_plugins.as_deref().unwrap_or_default(),
                );
            } else {
                self.options(section.keyword(), options);
            }
        }
    }

    fn proxy_section(&mut self, options: &Options, plugins: &[String]) {
        self.open("proxy");
        for setting in options {
            self.setting(setting);
        }
        self.open("plugin");
        for line in plugins {
            let words: Vec<String> = line.split(' ').map(word_text).collect();
            self.line(&format!("{};", words.join(" ")));
        }
        self.close();
        self.close();
    }

    fn host(&mut self, resource: &Resource, host: &Host) {
        let address = host.address.as_ref().map(address_text).unwrap_or_default();
        match host.kind {
            HostKind::On => {
                let names: Vec<String> = host.names.iter().map(|n| name_text(n)).collect();
                self.open(&format!("on {}", names.join(" ")));
            }
            HostKind::Floating => self.open(&format!("floating {address}")),
            HostKind::Stacked => {
                let lower = resource.stacked_on.as_deref().unwrap_or_default();
                self.open(&format!("stacked-on-top-of {}", name_text(lower)));
            }
        }
        if let Some(id) = host.node_id {
            self.statement("node-id", &id.to_string());
        }
        for volume in &host.volumes {
            if volume.implicit {
                self.volume(host, volume);
            } else {
                self.open(&format!("volume {}", volume.number));
                self.volume(host, volume);
                self.close();
            }
        }
        if host.kind != HostKind::Floating && host.address.is_some() {
            self.statement("address", &address);
        }
        self.options("options", &host.options);
        if let Some(proxy) = &host.proxy {
            self.host_proxy(proxy);
        }
        self.close();
    }

    fn volume(&mut self, host: &Host, volume: &Volume) {
        let Volume { device, .. } = volume;
        self.statement(
            "device",
            &format!("{} minor {}", word_text(&device.path), device.minor),
        );
        if host.kind != HostKind::Stacked {
            self.statement(
                "disk",
                &volume.disk.as_deref().map_or("none".to_owned(), word_text),
            );
            self.statement("meta-disk", &meta_text(&volume.meta_disk));
        }
        self.options("disk", &volume.disk_options);
    }

    fn host_proxy(&mut self, proxy: &Proxy) {
        let names: Vec<String> = proxy.hosts.iter().map(|n| name_text(n)).collect();
        self.open(&format!("proxy on {}", names.join(" ")));
        self.statement("inside", &address_text(&proxy.inside));
        self.statement("outside", &address_text(&proxy.outside));
        self.options("options", &proxy.options);
        self.close();
    }

    fn connection(&mut self, resource: &Resource, connection: &Connection) {
        self.open("connection");
        let several = connection.paths.len() > 1;
        for path in &connection.paths {
            if several {
                self.open("path");
            }
            for (address, &host) in path.iter().zip(&connection.hosts) {
                // The first of several names is enough to find the section again.
                let host = resource.hosts[host]
                    .names
                    .first()
                    .map_or(String::new(), |n| name_text(n));
                self.line(&format!("host {host} address {};", address_text(address)));
            }
            if several {
                self.close();
            }
        }
        self.options("net", &connection.net);
        self.options("disk", &connection.disk);
        for (number, options) in &connection.volumes {
            self.open(&format!("volume {number}"));
            self.options("disk", options);
            self.close();
        }
        self.close();
    }
}

fn setting_text(setting: &Setting) -> String {
    match setting.spec.kind {
        // A plain number would be read as KiB in a file of dialect 0.7.
        Kind::Number {
            unit: Unit::Sectors,
            ..
        } if setting.spec.name == "size"
            && setting.text.ends_with(|c: char| c.is_ascii_digit()) =>
        {
            format!("{}s", setting.text)
        }
        _ => setting.text.clone(),
    }
}

fn name_text(name: &str) -> String {
    let number = name.bytes().all(|b| b.is_ascii_digit());
    if number || KEYWORDS.contains(&name) {
        quote(name)
    } else {
        word_text(name)
    }
}

fn word_text(text: &str) -> String {
    if is_plain_word(text) {
        text.to_owned()
    } else {
        quote(text)
    }
}

fn meta_text(meta: &MetaDisk) -> String {
    match meta {
        MetaDisk::Internal => "internal".to_owned(),
        MetaDisk::Indexed { device, index } => format!("{}[{index}]", word_text(device)),
        MetaDisk::Flexible { device } => word_text(device),
    }
}

fn address_text(address: &Address) -> String {
    format!("{} {}", address.family.keyword(), address.endpoint())
}

/// The JSON model of spec section 3.2, seen from `node`. File names are relative to the directory of the top file.
///
/// # Errors
/// [`ResolveError::Ambiguous`].
pub fn to_json(config: &Config, node: &Node) -> Result<Json, ResolveError> {
    let views = config.resources_for(node)?;
    let names = Names::of(config);
    let mut warnings: Vec<_> = config
        .warnings
        .iter()
        .chain(views.iter().flat_map(|v| &v.warnings))
        .collect();
    warnings.sort_by_key(|w| w.span);
    let warnings: Vec<Json> = warnings
        .iter()
        .map(|w| {
            let (line, column) = (w.span.line, w.span.column);
            json!({ "file": names.file(w.span.file), "line": line, "column": column, "code": w.code.as_str() })
        })
        .collect();
    let resources: Vec<Json> = config
        .resources
        .iter()
        .map(|r| resource_json(&names, r, views.iter().find(|v| v.name == r.name)))
        .collect();
    Ok(json!({
        "schema": "drbdconf-expect/1",
        "input": names.file(0),
        "result": "ok",
        "dialect": config.dialect.as_str(),
        "this_host": { "name": node.name, "ip": node.addresses.first() },
        "global": options_json(&config.global),
        "common": config.common.as_ref().map(sections_json),
        "warnings": warnings,
        "resources": resources,
    }))
}

/// The JSON form of a refusal (spec section 3.2): the first error.
#[must_use]
pub fn report_json(report: &crate::Report) -> Json {
    let names = Names::of_map(&report.files);
    let place = |span: crate::Span| json!({ "file": names.file(span.file), "line": span.line, "column": span.column });
    let error = report.errors.first().map(|e| {
        let mut error = place(e.span);
        error["code"] = json!(e.code.as_str());
        error["expected"] = json!(e.expected);
        error["found"] = json!(e.found);
        error
    });
    json!({
        "schema": "drbdconf-expect/1",
        "input": names.file(0),
        "result": "error",
        "exit_code": 10,
        "error": error,
        "related": report.errors.first().and_then(|e| e.related).map(place),
    })
}

/// File names relative to the directory of the top file.
struct Names<'a> {
    map: &'a crate::SourceMap,
    directory: String,
}

impl<'a> Names<'a> {
    fn of(config: &'a Config) -> Self {
        Self::of_map(&config.files)
    }

    fn of_map(map: &'a crate::SourceMap) -> Self {
        let top = map.name(0);
        let directory = top
            .rfind('/')
            .map_or(String::new(), |slash| top[..=slash].to_owned());
        Self { map, directory }
    }

    fn file(&self, index: u32) -> &'a str {
        let name = self.map.name(index);
        name.strip_prefix(self.directory.as_str()).unwrap_or(name)
    }
}

fn value_json(value: &Value) -> Json {
    match value {
        Value::Number(n) => json!(n),
        Value::Switch(b) => json!(b),
        Value::Text(t) => json!(t),
        Value::Names(names) => json!(names),
    }
}

fn options_json(options: &Options) -> Json {
    options
        .iter()
        .map(|s| (s.spec.name.to_owned(), value_json(&s.value)))
        .collect::<Map<_, _>>()
        .into()
}

fn sections_json(sections: &Sections) -> Json {
    let mut out = Map::new();
    for section in SECTIONS {
        let Some(options) = sections.get(*section) else {
            continue;
        };
        let mut json = options_json(options);
        if let (Section::Proxy, Some(plugins)) = (section, &sections.proxy_plugins) {
            json["plugin"] = json!(plugins);
        }
        if json.as_object().is_some_and(|o| !o.is_empty()) {
            out.insert(section.keyword().to_owned(), json);
        }
    }
    if let Some(group) = sections.group {
        out.insert("legacy".to_owned(), json!({ "group": group }));
    }
    out.into()
}

fn address_json(address: &Address) -> Json {
    json!({ "family": address.family.keyword(), "ip": address.ip, "port": address.port })
}

fn meta_json(meta: &MetaDisk) -> Json {
    match meta {
        MetaDisk::Internal => json!("internal"),
        MetaDisk::Indexed { device, index } => json!({ "device": device, "index": index }),
        MetaDisk::Flexible { device } => json!({ "device": device, "index": "flexible" }),
    }
}

fn resource_json(names: &Names<'_>, resource: &Resource, view: Option<&ResolvedResource>) -> Json {
    let mut out = json!({
        "name": resource.name,
        "file": names.file(resource.at.file),
        "line": resource.at.line,
        "stacked_on": resource.stacked_on,
        "sections": sections_json(&resource.sections),
        "hosts": resource.hosts.iter().map(|h| host_json(resource, h)).collect::<Vec<_>>(),
        "connections": resource.connections.iter().map(|c| connection_json(resource, c)).collect::<Vec<_>>(),
        "effective": view.map(view_json),
    });
    if let Some(ids) = resource.implicit_node_ids() {
        let ids: Map<_, _> = resource
            .hosts
            .iter()
            .map(Host::name)
            .zip(ids.map(|id| json!(id)))
            .collect();
        out["implicit_node_ids"] = ids.into();
    }
    if let Some(template) = &resource.template {
        out["template_file"] = json!(template.file);
    }
    out
}

fn host_json(resource: &Resource, host: &Host) -> Json {
    let volumes: Vec<Json> = host
        .volumes
        .iter()
        .map(|v| {
            json!({
                "vnr": v.number,
                "implicit": v.implicit,
                "device": v.device.path,
                "minor": v.device.minor,
                "disk": v.disk,
                "meta_disk": meta_json(&v.meta_disk),
                "disk_options": options_json(&v.disk_options),
            })
        })
        .collect();
    let mut out = json!({
        "kind": host.kind.keyword(),
        "names": host.names,
        "node_id": host.node_id,
        "address": host.address.as_ref().map(address_json),
        "volumes": volumes,
    });
    if !host.options.is_empty() {
        out["options"] = options_json(&host.options);
    }
    if let Some(proxy) = &host.proxy {
        let (inside, outside) = (address_json(&proxy.inside), address_json(&proxy.outside));
        out["proxy"] = json!({ "hosts": proxy.hosts, "inside": inside, "outside": outside });
        if !proxy.options.is_empty() {
            out["proxy"]["options"] = options_json(&proxy.options);
        }
    }
    if host.kind == HostKind::Stacked {
        out["lower_resource"] = json!(resource.stacked_on);
    }
    out
}

fn connection_json(resource: &Resource, connection: &Connection) -> Json {
    let name = |i: usize| resource.hosts[connection.hosts[i]].name();
    let end =
        |i: usize, address: &Address| json!({ "host": name(i), "address": address_json(address) });
    let paths: Vec<Json> = connection
        .paths
        .iter()
        .map(|[a, b]| json!([end(0, a), end(1, b)]))
        .collect();
    let mut out = json!({
        "source": connection.source.as_str(),
        "hosts": [name(0), name(1)],
        "paths": paths,
        "net": options_json(&connection.net),
    });
    add_pair_options(&mut out, &connection.disk, &connection.volumes);
    out
}

fn add_pair_options(out: &mut Json, disk: &Options, volumes: &[(u16, Options)]) {
    if !disk.is_empty() {
        out["disk"] = options_json(disk);
    }
    if !volumes.is_empty() {
        let volumes: Map<_, _> = volumes
            .iter()
            .map(|(n, o)| (n.to_string(), options_json(o)))
            .collect();
        out["volumes"] = volumes.into();
    }
}

fn view_json(view: &ResolvedResource) -> Json {
    let peers: Vec<Json> = view
        .peers
        .iter()
        .map(|peer| {
            let path = |p: &crate::PeerPath| json!({ "local": p.local.to_string(), "remote": p.remote.to_string() });
            let mut out = json!({
                "host": peer.name,
                "paths": peer.paths.iter().map(path).collect::<Vec<_>>(),
                "net": options_json(&peer.written),
            });
            add_pair_options(&mut out, &peer.disk, &peer.volumes);
            out
        })
        .collect();
    json!({
        "host": view.host,
        "startup": options_json(&view.written.startup),
        "options": options_json(&view.written.options),
        "handlers": options_json(&view.written.handlers),
        "volumes": view.volumes.iter().map(view_volume_json).collect::<Vec<_>>(),
        "peers": peers,
    })
}

fn view_volume_json(volume: &ResolvedVolume) -> Json {
    json!({
        "vnr": volume.number,
        "minor": volume.device.minor,
        "device": volume.device.path,
        "disk": volume.disk,
        "meta_disk": meta_json(&volume.meta_disk),
        "disk_options": options_json(&volume.written),
    })
}

/// A comment-free one-line summary of a resource for logs: name, own host, peers.
#[must_use]
pub fn summary(view: &ResolvedResource) -> String {
    let mut out = format!("{} on {}", view.name, view.host);
    for peer in &view.peers {
        // Writing to a String cannot fail.
        let _ = write!(out, ", peer {}", peer.name);
        if let Some(path) = peer.paths.first() {
            let _ = write!(out, " at {}", path.remote);
        }
    }
    out
}
